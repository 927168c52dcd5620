"""Rows of a comparison of methods, with intervals of the difference to dense: tables, CSV, plot, verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llava.eval.results.comparison import compare
from llava.eval.results.plots import DENSE_LEVEL, FRONT, look, new_figure, pareto_front, tidy
from llava.eval.results.table import Column, Table
from llava.eval.results.table import csv_text as csv_of
from llava.eval.runner.run import Run

from .benchmark_set import Count, costs_of

MEAN = "mean"
TOKENS: Mapping[Count, str] = {"all": "all tokens", "visual": "visual tokens"}
SHARES: Mapping[Count, str] = {"all": "flops", "visual": "visual_flops"}

Row = dict[str, Any]


def make_row(name: str, method: str, saved: float | None, runs: Mapping[str, Run], dense: Mapping[str, Run]) -> Row:
    """Return the figures of a config; percent, differences in points against the dense run of the same questions.

    saved: the target in percent, None where there is none; runs, dense: by benchmark
    "interval" (95%, paired bootstrap over images) is None where there is a single image. That of the mean combines the
    benchmarks' half widths as roots of squares, since they share no image.
    """
    compared = {}
    for benchmark, run in runs.items():
        spec = run.record.get("benchmark")
        own = (
            spec if isinstance(spec, str) and ":" in spec else None
        )  # a benchmark of the user's own, as --benchmark says
        compared[benchmark] = compare(dense[benchmark], run, own)
    accuracy = {benchmark: one["scores"]["accuracy"] for benchmark, one in compared.items()}
    costs = costs_of(runs)
    return {
        "name": name,
        "method": method,
        "saved": saved,
        "config": next(iter(runs.values())).config,
        "questions": costs.questions,
        "accuracy": {benchmark: score["b"] for benchmark, score in accuracy.items()},
        "difference": {benchmark: score["difference"] for benchmark, score in accuracy.items()},
        "interval": {benchmark: score["interval"] for benchmark, score in accuracy.items()},
        "scores": {benchmark: {key: s["b"] for key, s in one["scores"].items()} for benchmark, one in compared.items()},
        "agreement": {benchmark: one["agreement"]["percent"] for benchmark, one in compared.items()},
        "mean": _mean([score["b"] for score in accuracy.values()]),
        "mean_difference": _mean([score["difference"] for score in accuracy.values()]),
        "mean_interval": mean_interval([(score["difference"], score["interval"]) for score in accuracy.values()]),
        "flops": costs.flops_share,
        "visual_flops": costs.visual_flops_share,
        "kv": costs.kv_share,
        "tokens_per_layer": costs.mean_tokens,
        "kept_tokens": costs.mean_kept,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def mean_interval(parts: Sequence[tuple[float, Sequence[float] | None]]) -> list[float] | None:
    """Combine (difference, interval) of independent benchmarks for the mean; None where one has no interval."""
    if any(interval is None for _, interval in parts):
        return None
    middle = _mean([difference for difference, _ in parts])
    below = math.hypot(*(difference - interval[0] for difference, interval in parts)) / len(parts)
    above = math.hypot(*(interval[1] - difference for difference, interval in parts)) / len(parts)
    return [middle - below, middle + above]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Sort by mean accuracy, best first, then by FLOPs."""
    return sorted(rows, key=lambda row: (-row["mean"], row["flops"]))


def verdict(rows: Sequence[Row], saved: float, points: float) -> str:
    """Say in one line which method is first at a target, and whether VisiPruner stays within `points` of dense."""
    order = ranked([row for row in rows if row["saved"] == saved])
    if not order:
        return f"−{saved:g}%: no method reaches it"
    first = f"{order[0]['method']} is first with {order[0]['mean']:.1f}"
    place = next((place for place, row in enumerate(order, start=1) if row["method"] == "visipruner"), None)
    if place is None:
        return f"−{saved:g}%: {first}; visipruner is absent"
    row = order[place - 1]
    worst = min(row["difference"], key=row["difference"].__getitem__)
    loss = row["difference"][worst]
    kept = "within" if loss >= -points else "NOT within"
    limit = f"{kept} {points:g} point{'s' * (points != 1)} of dense on each benchmark (worst: {worst} {loss:+.1f})"
    return (
        f"−{saved:g}%: {f'{first}; ' * (place > 1)}visipruner is number {place} of {len(order)} "
        f"with {row['mean']:.1f}, {limit}"
    )


def print_tables(summary: Mapping[str, Any]) -> None:
    """Print a table per target, best first, controls in one of their own; then which methods are absent, and why."""
    for saved in [None, *summary["targets"]]:
        members = ranked([row for row in summary["rows"] if row["saved"] == saved])
        if members:
            target = f"−{saved or 0:g}% of prefill FLOPs, {TOKENS[summary['count']]}"
            table_of(members).print("controls and other configs" if saved is None else target)
        for method, reason in summary["absent"].get(f"{saved:g}", {}).items() if saved is not None else ():
            print(f"{method}: absent, {reason}")
        print()


def table_of(rows: Sequence[Row]) -> Table:
    """The table of some rows: accuracy and difference to dense, with a star where its interval does not hold 0."""

    def change(share: float) -> str:
        return f"{100 * (share - 1):+.1f}%"

    benchmarks = list(rows[0]["accuracy"])
    columns = [Column("method"), *map(Column, [MEAN, *benchmarks]), Column("flops", "FLOPs all", change)]
    columns += [Column("visual_flops", "FLOPs visual", change), Column("kv", "KV", change)]
    columns.append(Column("tokens_per_layer", "tokens per layer", ".1f"))
    if any("speedup" in row for row in rows):
        columns += [
            Column("prefill_ms", "prefill", "{:.2f} ms".format),
            Column("speedup", "speed-up", "{:.2f}×".format),
        ]
    return Table(
        columns, [row | {MEAN: _mean_cell(row)} | {one: _cell(row, one) for one in benchmarks} for row in rows]
    )


def _cell(row: Row, benchmark: str) -> str:
    interval = row["interval"][benchmark]
    sure = interval is not None and not interval[0] <= 0 <= interval[1]
    return f"{row['accuracy'][benchmark]:.1f} {row['difference'][benchmark]:+.1f}{'*' if sure else ' '}"


def _mean_cell(row: Row) -> str:
    interval = row["mean_interval"]
    ends = "" if interval is None else f" ({interval[0]:+.1f} to {interval[1]:+.1f})"
    return f"{row['mean']:.1f} {row['mean_difference']:+.1f}{ends}"


def csv_text(rows: Sequence[Row]) -> str:
    """All figures, one line per config: nested ones in columns of their own, intervals as two."""
    return csv_of([dict(_flat(row)) for row in rows])


def _flat(row: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if key == "config":
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}_")
        elif isinstance(value, list):
            yield from zip((f"{before}{key}_low", f"{before}{key}_high"), value, strict=False)
        else:
            yield f"{before}{key}", value


def draw(rows: Sequence[Row], title: str, count: Count) -> Any:
    """Draw accuracy against prefill FLOPs, one panel per benchmark and one of the mean, a line per method."""
    benchmarks = list(rows[0]["accuracy"])
    panels = {MEAN: [row["mean"] for row in rows]} | {b: [row["accuracy"][b] for row in rows] for b in benchmarks}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    columns, lines = min(2, len(panels)), -(-len(panels) // 2)
    figure, grid = new_figure((5.4 * columns, 4.2 * lines + 1), lines, columns)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, values) in zip(grid.ravel(), panels.items(), strict=False):
        points = [(100 * row[SHARES[count]], value) for row, value in zip(rows, values, strict=True)]
        for number, method in enumerate(methods):
            own = sorted(point for point, row in zip(points, rows, strict=True) if row["method"] == method)
            axes.plot(*zip(*own, strict=True), label=method, alpha=0.85, **_look(number, method))
        axes.plot(*zip(*(points[index] for index in pareto_front(points)), strict=True), zorder=1, **FRONT)
        level = next(value for row, value in zip(rows, values, strict=True) if row["method"] == "dense")
        axes.axhline(level, zorder=0, **DENSE_LEVEL)
        axes.set(title=name, xlabel=f"prefill FLOPs, {TOKENS[count]} (% of dense)", ylabel="accuracy (%)")
        tidy(axes)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    figure.suptitle(f"{title}: accuracy against FLOPs (dashed: Pareto front, dotted: dense)")
    return figure


def _look(number: int, method: str) -> dict[str, Any]:
    if method == "dense":
        return {"color": "black", "marker": "*", "markersize": 14, "linestyle": ""}
    size = {"linewidth": 2.4, "markersize": 9} if method == "visipruner" else {"linewidth": 1.0, "markersize": 6}
    return look(number) | size
