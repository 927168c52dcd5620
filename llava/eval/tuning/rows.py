"""Rows of a comparison of methods, with intervals of the difference to dense: tables, CSV, plot, verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llava.eval.results.comparison import FAILED, compare
from llava.eval.results.judging import judge_of
from llava.eval.results.plots import DENSE_LEVEL, FRONT, draw_intervals, looks, new_figure, pareto_front, tidy
from llava.eval.results.table import Column, Table
from llava.eval.results.table import csv_text as csv_of
from llava.eval.runner.run import Run

from .benchmark_set import Count, costs_of

MEAN = "mean"
COLUMNS = 6
"""Panels of a line of the picture."""
TOKENS: Mapping[Count, str] = {"all": "all tokens", "visual": "visual tokens"}
SHARES: Mapping[Count, str] = {"all": "flops", "visual": "visual_flops"}

Row = dict[str, Any]
Failed = dict[str, Any]
"""{"percent": questions that a control fails, "accuracy": {config: on those}}, both by benchmark."""


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


def failed_by(control: Mapping[str, Run], runs: Mapping[str, Mapping[str, Run]]) -> Failed:
    """Return the share of questions that the control fails, and the accuracy of each config's runs on them.

    Benchmarks of which it fails none are left out.
    """
    found: Failed = {"percent": {}, "accuracy": {name: {} for name in runs}}
    for benchmark, run in control.items():
        spec = run.record.get("benchmark")
        judging = judge_of(run, spec if isinstance(spec, str) and ":" in spec else None)
        scores = judging.scores(run)
        failed = [key for key, score in scores.items() if score < FAILED]
        if not failed:
            continue
        found["percent"][benchmark] = 100 * len(failed) / len(scores)
        for name, own in runs.items():
            reached = judging.scores(own[benchmark])
            found["accuracy"][name][benchmark] = 100 * _mean([reached[key] for key in failed])
    return found


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
        failed = summary["failed"].get(f"{saved:g}") if saved is not None else None
        if failed and failed["percent"]:
            print_failed(failed)
        for method, reason in summary["absent"].get(f"{saved:g}", {}).items() if saved is not None else ():
            print(f"{method}: absent, {reason}")
        print()


def print_failed(failed: Failed) -> None:
    """Print the accuracy on the questions that the control fails, best first."""
    benchmarks = list(failed["percent"])
    table = Table(
        [Column("name", "config"), Column(MEAN, MEAN, ".1f"), *(Column(one, one, ".1f") for one in benchmarks)]
    )
    means = {name: _mean(list(own.values())) for name, own in failed["accuracy"].items()}
    for name in sorted(means, key=lambda name: -means[name]):
        table.add(name, means[name], *failed["accuracy"][name].values())
    shares = ", ".join(f"{share:.0f}% of {benchmark}" for benchmark, share in failed["percent"].items())
    table.print(f"accuracy on the questions that downsample fails: {shares}")


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
    """Draw mean accuracy against prefill FLOPs in one small panel per method, the others grey behind it.

    Every panel has the levels of dense and of the best config at each cost; bars are 95% intervals of the difference.
    """
    dense = next(row for row in rows if row["method"] == "dense")["mean"]
    methods = [name for name in dict.fromkeys(row["method"] for row in rows) if name != "dense"]
    shown = {name: _line([row for row in rows if row["method"] == name], count) for name in methods}
    points = [(100 * row[SHARES[count]], row["mean"]) for row in rows]
    front, own = [points[index] for index in pareto_front(points)], looks(methods)
    columns = min(COLUMNS, len(methods))
    lines = -(-len(methods) // columns)
    figure, grid = new_figure((2.3 * columns, 2.1 * lines + 0.9), lines, columns, sharex=True, sharey=True)
    for axes, (name, (x, y, low, high)) in zip(grid.ravel(), shown.items(), strict=False):
        for other, line in shown.items():
            if other != name:
                axes.plot(line[0], line[1], color="0.85", linewidth=0.8, marker=".", markersize=3, zorder=0)
        axes.axhline(dense, zorder=1, **DENSE_LEVEL)
        axes.plot(*zip(*front, strict=True), zorder=1, **FRONT | {"linewidth": 0.8})
        draw_intervals(axes, x, y, low, high, own[name]["color"])
        axes.plot(x, y, linewidth=1.8, markersize=6, zorder=3, **own[name])
        axes.set_title(name, fontsize=9)
        tidy(axes)
    for axes in grid.ravel()[len(methods) :]:
        axes.set_visible(False)
    figure.supxlabel(f"prefill FLOPs, {TOKENS[count]} (% of dense)", fontsize=9)
    figure.supylabel("mean accuracy (%)", fontsize=9)
    figure.suptitle(
        f"{title}: mean accuracy of {', '.join(rows[0]['accuracy'])} (dotted: dense, dashed: Pareto front)", fontsize=10
    )
    return figure


def _line(rows: Sequence[Row], count: Count) -> tuple[list[float], ...]:
    """FLOPs in percent, mean accuracy and the ends of its interval (NaN without one), cheapest first."""
    rows = sorted(rows, key=lambda row: row[SHARES[count]])
    ends = [row["mean_interval"] or (math.nan, math.nan) for row in rows]
    base = [row["mean"] - row["mean_difference"] for row in rows]
    low, high = ([level + end[side] for level, end in zip(base, ends, strict=True)] for side in (0, 1))
    return [100 * row[SHARES[count]] for row in rows], [row["mean"] for row in rows], low, high
