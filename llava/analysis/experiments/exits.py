"""Where a config decides: histograms of the filter layer and of the vision exit layer, from the traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from .pictures import tidy
from .plan import DENSE, Cell, Experiment, Row, Setup


def cells(setup: Setup) -> list[Cell]:
    """Run the config once, beside dense."""
    return [Cell({"run": DENSE}, None), Cell({"run": "config"}, setup.config)]


def table(rows: Sequence[Row], totals: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Make a line a layer: prompts that filtered after it, and that ran it as their first without visual tokens."""
    found = totals[1]
    names = [*map(str, range(len(found["tokens_per_layer_mean"]))), "none"]
    return [
        {
            "layer": name,
            "filtered": found["filter_layers"].get(name, 0),
            "exited": found["exit_layers"].get(name, 0),
            "questions": found["questions"],
        }
        for name in names
    ]


def draw(rows: Sequence[Row]) -> Figure:
    """Draw both histograms, in percent of the prompts."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for shift, key, label in ((-0.2, "filtered", "filter layer"), (0.2, "exited", "vision exit layer")):
        axes.bar(
            [place + shift for place in range(len(rows))],
            [100 * row[key] / max(row["questions"], 1) for row in rows],
            0.4,
            label=label,
        )
    axes.set_xticks(range(len(rows)), [row["layer"] for row in rows])
    axes.set(xlabel="decoder layer, from 0", ylabel="prompts (%)")
    axes.legend(fontsize=8, frameon=False)
    tidy(axes)
    return figure


EXPERIMENT = Experiment(
    name="exits",
    title="Filter layer and vision exit layer",
    source="Section 5",
    finding="On average 10.3 of 576 visual tokens are kept and vision ends at layer 23.9 (counted from 1).",
    cells=cells,
    draw=draw,
    table=table,
)
