"""The report of all experiments on one model: the cross-modal map, then a section for each experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.eval.results.plots import PlotOptions
from llava.eval.results.table import Column, Table, csv_text

from .experiment_figures import Row, cross_modal_map
from .paper_experiments import Experiment, Setup, layers_text

STRIPES = {
    "first layers masked": ("windows", "window", "first", "text cannot read the image in layers 0 to this one"),
    "last layers masked": ("windows", "window", "last", "text cannot read the image from this layer on"),
    "one layer skipped": ("discarding", "how", "skip", "text cannot read the image in this layer alone"),
    "discarded": ("discarding", "how", "discard", "no visual token from this layer on"),
}
"""Name of a stripe → experiment, column and value of the rows that it shows, and what it means."""
HIDDEN = ("questions", "agreement_low", "agreement_high", "visual_flops_share", "tokens_per_layer", "answers")
"""Columns that are in the CSV alone."""


def cross_modal_rows(tables: Mapping[str, Sequence[Row]], layers: int) -> list[Row]:
    """Return one row per layer: the remaining score in percent of dense, and the share of prompts that prune there.

    `depth` is relative, from 0 to 1, so that models of different depth can be compared. Layers that the sweep leaves
    out are None. A benchmark without a score has agreement in its place.
    """
    dense = tables["windows"][0]
    key = "agreement" if dense["score"] is None else "score"
    rows: list[Row] = [{"layer": layer, "depth": round((layer + 0.5) / layers, 4)} for layer in range(layers)]
    for name, (experiment, column, value, _) in STRIPES.items():
        shift = 1 if value == "first" else 0
        left = {row["k"] - shift: row[key] for row in tables[experiment] if row[column] == value}
        for row in rows:
            score = left.get(row["layer"])
            row[name] = None if score is None or not dense[key] else round(100 * score / dense[key], 2)
    for row, decided in zip(rows, tables["exits"], strict=False):
        for name, column in (("filter layer", "filtered"), ("vision exit", "exited")):
            row[name] = round(100 * decided[column] / max(decided["questions"], 1), 2)
    return rows


def write_report(
    out: Path,
    experiments: Sequence[Experiment],
    tables: Mapping[str, Sequence[Row]],
    setup: Setup,
    subject: str,
    plots: PlotOptions,
) -> Path:
    """Write `map.csv`, the map's plot and `report.md` to `out`, and return the report's path."""
    rows = cross_modal_rows(tables, setup.layers)
    (out / "map.csv").write_text(csv_text(rows), encoding="utf-8")
    plots.save(cross_modal_map(rows, f"Cross-modal map: {subject}"), out / "map")
    windows = ", ".join(f"{name} {layers_text(layers)}" for name, layers in setup.windows.items())
    meanings = [f"- **{name}**: {meaning}" for name, (_, _, _, meaning) in STRIPES.items()]
    parts = [
        f"# Cross-modal map: {subject}",
        f"{setup.layers} decoder layers, counted from 0; stages taken as: {windows}. Four rows of the map are what is\n"
        "left of the dense run's score, in percent; the last two are the share of prompts that decided there.",
        f"![Cross-modal map](map.{plots.format})",
        "\n".join([*meanings, "- **filter layer**, **vision exit**: where the config decided (experiment `exits`)"]),
        table_of(rows).markdown(),
    ]
    for one in experiments:
        parts += [
            f"## {one.title}",
            f"{one.source} of the paper. LLaVA-1.5-7B there: {one.finding}",
            f"![{one.title}]({one.name}.{plots.format})",
            table_of(tables[one.name]).markdown(),
        ]
    path = out / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def table_of(rows: Sequence[Row], hidden: Sequence[str] = ()) -> Table:
    """Return the rows as a readable table without the columns in `HIDDEN` and `hidden`."""
    keys = [key for key in rows[0] if key not in (*HIDDEN, *hidden)]
    return Table([Column(key, form=_number) for key in keys], rows)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
