"""One report of all experiments on one model: the cross-modal map, then a section an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .plan import Experiment, Row, Setup, layers_text
from .running import write_csv

LINES = {
    "first layers masked": ("windows", "window", "first", "text cannot read the image in layers 0 to this one"),
    "last layers masked": ("windows", "window", "last", "text cannot read the image from this layer on"),
    "one layer skipped": ("discarding", "how", "skip", "text cannot read the image in this layer alone"),
    "discarded": ("discarding", "how", "discard", "no visual token from this layer on"),
}
FIGURE = "score"


def cross_modal_map(tables: Mapping[str, Sequence[Row]], layers: int) -> list[Row]:
    """Return a row a layer: what is left of the score, in percent of dense, and where the config decides.

    Depth runs from 0 to 1, so that models of different depth can be laid beside each other. Layers that the sweep
    leaves out are None.
    """
    key = FIGURE if tables["windows"][0][FIGURE] is not None else "agreement"
    dense = tables["windows"][0][key]
    rows: list[Row] = [{"layer": layer, "depth": round((layer + 0.5) / layers, 4)} for layer in range(layers)]
    for name, (experiment, column, value, _) in LINES.items():
        shift = 1 if value == "first" else 0
        left = {row["k"] - shift: row[key] for row in tables[experiment] if row[column] == value}
        for row in rows:
            found = left.get(row["layer"])
            row[name] = None if found is None or not dense else round(100 * found / dense, 2)
    for row, found in zip(rows, tables["exits"], strict=False):
        for name, column in (("filter layer", "filtered"), ("vision exit", "exited")):
            row[name] = round(100 * found[column] / max(found["questions"], 1), 2)
    return rows


def draw_map(rows: Sequence[Row], title: str) -> Figure:
    """Draw the map: a stripe a question, depth across."""
    names = [name for name in rows[0] if name not in ("layer", "depth")]
    values = np.array([[np.nan if row[name] is None else row[name] for row in rows] for name in names], float)
    figure = Figure(figsize=(max(7.0, 0.5 * len(rows) + 3), 0.55 * len(names) + 1.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="magma", vmin=0, vmax=100, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        if not np.isnan(value) and len(rows) <= 40:
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color="wk"[int(value > 60)])
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(0, len(rows), max(1, len(rows) // 16)))
    axes.set(xlabel="decoder layer, from 0", title=title)
    figure.colorbar(image, ax=axes, label="% of dense; of prompts", shrink=0.9)
    return figure


def write_report(
    out: Path, experiments: Sequence[Experiment], tables: Mapping[str, Sequence[Row]], setup: Setup, subject: str
) -> Path:
    """Write `map.csv`, `map.png` and `report.md` to `out`, and return the report's path."""
    rows = cross_modal_map(tables, setup.layers)
    write_csv(out / "map.csv", rows)
    draw_map(rows, f"Cross-modal map: {subject}").savefig(out / "map.png", dpi=110)
    windows = ", ".join(f"{name} {layers_text(layers)}" for name, layers in setup.windows.items())
    lines = [
        f"# Cross-modal map: {subject}",
        "",
        f"{setup.layers} decoder layers, counted from 0; stages taken as: {windows}. Four rows of the map are what is",
        "left of the dense run's score, in percent; the last two are the share of prompts that decided there.",
        "",
        "![Cross-modal map](map.png)",
        "",
        *(f"- **{name}**: {meaning}" for name, (_, _, _, meaning) in LINES.items()),
        "- **filter layer**, **vision exit**: where the pruning config decided (experiment `exits`)",
        "",
        *_table(rows),
    ]
    for experiment in experiments:
        table = tables[experiment.name]
        lines += [
            "",
            f"## {experiment.title}",
            "",
            f"{experiment.source} of the paper. LLaVA-1.5-7B there: {experiment.finding}",
        ]
        lines += ["", f"![{experiment.title}]({experiment.name}.png)", "", *_table(table)]
    path = out / "report.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


LEFT_OUT = ("questions", "agreement_low", "agreement_high", "visual_flops_share", "tokens_a_layer", "answers")


def _table(rows: Sequence[Row]) -> list[str]:
    names = [name for name in rows[0] if name not in LEFT_OUT]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(_text(row[name]) for name in names) + " |" for row in rows]


def _text(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
