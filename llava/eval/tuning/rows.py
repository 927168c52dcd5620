"""The rows of the comparison: each config beside dense, question by question, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.results.comparison import compare
from llava.eval.results.runs import EvalRun

Row = dict[str, Any]


def make_row(name: str, method: str, saved: float | None, runs: Mapping[str, EvalRun], dense: Mapping) -> Row:
    """Return the figures of a config; percent, differences in points against the dense run of the same questions.

    saved: the target in percent, None where there is none; runs, dense: by benchmark
    "interval" (95%, paired bootstrap over images) is None where there is a single image. That of the mean puts the
    benchmarks' half widths together as roots of squares, since they share no picture.
    """
    found = {benchmark: compare(dense[benchmark], run) for benchmark, run in runs.items()}
    accuracy = {benchmark: one["scores"]["accuracy"] for benchmark, one in found.items()}
    totals = [run.costs.to_dict() for run in runs.values()]

    def share(key: str) -> float:
        return sum(part[key] for part in totals) / sum(part[f"dense_{key}"] for part in totals)

    questions = sum(part["questions"] for part in totals)
    return {
        "name": name,
        "method": method,
        "saved": saved,
        "config": next(iter(runs.values())).settings.get("pruning_config"),
        "questions": questions,
        "accuracy": {benchmark: score["b"] for benchmark, score in accuracy.items()},
        "difference": {benchmark: score["difference"] for benchmark, score in accuracy.items()},
        "interval": {benchmark: score["interval"] for benchmark, score in accuracy.items()},
        "scores": {benchmark: {key: s["b"] for key, s in one["scores"].items()} for benchmark, one in found.items()},
        "agreement": {benchmark: one["agreement"]["percent"] for benchmark, one in found.items()},
        "mean": _mean([score["b"] for score in accuracy.values()]),
        "mean_difference": _mean([score["difference"] for score in accuracy.values()]),
        "mean_interval": mean_interval([(score["difference"], score["interval"]) for score in accuracy.values()]),
        "flops": share("flops_all_tokens"),
        "visual_flops": share("flops"),
        "kv": share("kv_bytes"),
        "tokens_per_layer": sum(part["tokens_mean"] * part["questions"] for part in totals) / questions,
        "kept_tokens": sum(part["kept_tokens_mean"] * part["questions"] for part in totals) / questions,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def mean_interval(parts: Sequence[tuple[float, Sequence[float] | None]]) -> list[float] | None:
    """Put (difference, interval) of independent benchmarks together for the mean; None where one has no interval."""
    if any(interval is None for _, interval in parts):
        return None
    middle = _mean([difference for difference, _ in parts])
    below = math.hypot(*(difference - interval[0] for difference, interval in parts)) / len(parts)
    above = math.hypot(*(interval[1] - difference for difference, interval in parts)) / len(parts)
    return [middle - below, middle + above]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Best first: by mean accuracy, then by FLOPs."""
    return sorted(rows, key=lambda row: (-row["mean"], row["flops"]))


def verdict(rows: Sequence[Row], saved: float, points: float) -> str:
    """Say in one line who won at a target, and whether VisiPruner stays within `points` of dense on each benchmark."""
    order = ranked([row for row in rows if row["saved"] == saved])
    if not order:
        return f"−{saved:g}%: no method reaches it"
    line = f"−{saved:g}%: "
    place = next((place for place, row in enumerate(order, start=1) if row["method"] == "visipruner"), None)
    if place is None:
        return f"{line}{_first(order)}; visipruner is absent"
    row = order[place - 1]
    worst = min(row["difference"], key=row["difference"].__getitem__)
    loss = row["difference"][worst]
    kept = "within" if loss >= -points else "NOT within"
    told = f"{kept} {points:g} point{'s' * (points != 1)} of dense on each benchmark (worst: {worst} {loss:+.1f})"
    if place > 1:
        line += f"{_first(order)}; "
    return f"{line}visipruner is number {place} of {len(order)} with {row['mean']:.1f}, {told}"


def _first(order: Sequence[Row]) -> str:
    return f"{order[0]['method']} is first with {order[0]['mean']:.1f}"
