"""The comparison for people (a table a target), for spreadsheets (CSV), and as a Pareto picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llava.eval.results.plots import DENSE_LEVEL, FRONT, MARKERS, pareto_front

from . import Count
from .rows import Row, ranked

MEAN = "mean"
CONTROLS = "controls and other configs"
TOKENS: Mapping[Count, str] = {"all": "all tokens", "visual": "visual tokens"}
COLUMNS: Mapping[Count, str] = {"all": "flops", "visual": "visual_flops"}


def print_tables(
    rows: Sequence[Row], targets: Sequence[float], absent: Mapping[str, Mapping[str, str]], count: Count
) -> None:
    """Print a table a target, best first, controls in one of their own; then who is absent, and why.

    absent: {target: {method: reason}}
    """
    console = Console(width=max(150, Console().width), highlight=False)
    for saved in [None, *targets]:
        members = [row for row in rows if row["saved"] == saved]
        if members:
            console.print(
                f"[bold]{CONTROLS if saved is None else f'−{saved:g}% of prefill FLOPs, {TOKENS[count]}'}[/bold]"
            )
            console.print(_table(ranked(members)))
        for method, reason in absent.get(f"{saved:g}" if saved is not None else "", {}).items():
            console.print(escape(f"{method}: absent, {reason}"), soft_wrap=True)
        console.print()


def _table(rows: Sequence[Row]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    benchmarks = list(rows[0]["accuracy"])
    timed = any("speedup" in row for row in rows)
    table.add_column("method", no_wrap=True)
    headings = [MEAN, *benchmarks, "FLOPs\nall", "FLOPs\nvisual", "\nKV", "tokens\na layer"] + [
        "prefill",
        "speed-up",
    ] * timed
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [_mean_cell(row)]
        cells += [_cell(row["accuracy"][b], row["difference"][b], row["interval"][b]) for b in benchmarks]
        cells += [f"{100 * (row[key] - 1):+.1f}%" for key in ("flops", "visual_flops", "kv")] + [
            f"{row['tokens_per_layer']:.1f}"
        ]
        if timed:
            cells += [f"{row['prefill_ms']:.2f} ms", f"{row['speedup']:.2f}×"]
        table.add_row(escape(row["method"]), *(escape(cell) for cell in cells))
    return table


def _cell(value: float, difference: float, interval: Sequence[float] | None) -> str:
    """A score and its difference to dense, with a star where the interval does not hold 0."""
    sure = interval is not None and not interval[0] <= 0 <= interval[1]
    return f"{value:.1f} {difference:+.1f}{'*' if sure else ' '}"


def _mean_cell(row: Row) -> str:
    interval = row["mean_interval"]
    told = "" if interval is None else f" ({interval[0]:+.1f} to {interval[1]:+.1f})"
    return f"{row['mean']:.1f} {row['mean_difference']:+.1f}{told}"


def csv_text(rows: Sequence[Row]) -> str:
    """All figures, a line a config: nested ones in columns of their own, intervals as two."""
    flat = [dict(_flat(row)) for row in rows]
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in flat for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(row: Mapping[str, Any], before: str = ""):
    for key, value in row.items():
        if key == "config":
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}_")
        elif isinstance(value, list):
            yield from zip((f"{before}{key}_low", f"{before}{key}_high"), value, strict=False)
        else:
            yield f"{before}{key}", value


def picture(rows: Sequence[Row], path: Path, title: str, count: Count) -> None:
    """Draw accuracy against prefill FLOPs, a panel a benchmark and one of the mean: a line a method, the front."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    benchmarks = list(rows[0]["accuracy"])
    panels = {MEAN: [row["mean"] for row in rows]} | {b: [row["accuracy"][b] for row in rows] for b in benchmarks}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure = Figure(figsize=(5.4 * min(2, len(panels)), 4.2 * -(-len(panels) // 2) + 1), layout="constrained")
    grid = figure.subplots(-(-len(panels) // 2), min(2, len(panels)), squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, values) in zip(grid, panels.items(), strict=False):
        points = [(100 * row[COLUMNS[count]], value) for row, value in zip(rows, values, strict=True)]
        for number, method in enumerate(methods):
            own = sorted(point for point, row in zip(points, rows, strict=True) if row["method"] == method)
            axes.plot(*zip(*own, strict=True), label=method, alpha=0.85, **_look(number, method))
        axes.plot(*zip(*(points[index] for index in pareto_front(points)), strict=True), zorder=1, **FRONT)
        level = next(value for row, value in zip(rows, values, strict=True) if row["method"] == "dense")
        axes.axhline(level, zorder=0, **DENSE_LEVEL)
        axes.set(title=name, xlabel=f"prefill FLOPs, {TOKENS[count]} (% of dense)", ylabel="accuracy (%)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    figure.suptitle(f"{title}: accuracy against FLOPs (dashed: Pareto front, dotted: dense)")
    figure.savefig(path, dpi=110)


def _look(number: int, method: str) -> dict[str, Any]:
    if method == "dense":
        return {"color": "black", "marker": "*", "markersize": 14, "linestyle": ""}
    wide = {"linewidth": 2.4, "markersize": 9} if method == "visipruner" else {"linewidth": 1.0, "markersize": 6}
    return {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)], **wide}
