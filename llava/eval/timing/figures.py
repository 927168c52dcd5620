"""From timed runs to figures: medians, ranges, and speed-up as a share of the FLOPs ceiling."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from llava.model.pruning import PruningTrace

from .memory import Peak
from .rounds import Run


def spread(name: str, values: Sequence[float | None], digits: int = 4) -> dict[str, Any]:
    """Median and range under `name` and `name_range`; None without measurements."""
    known = [value for value in values if value is not None]
    if not known:
        return {name: None, f"{name}_range": None}
    middle, ends = statistics.median(known), [min(known), max(known)]
    return {name: round(middle, digits), f"{name}_range": [round(end, digits) for end in ends]}


def plans(traces: Sequence[PruningTrace]) -> list[dict[str, Any]]:
    """Count the decisions, the most frequent first: filter layer, visual tokens kept, exit layer, prompts."""
    counts = Counter(
        (trace.filter_layer, None if trace.filter_layer is None else len(trace.kept), trace.exit_layer)
        for trace in traces
    )
    return [
        {"filter_layer": layer, "kept": kept, "exit_layer": exit_layer, "prompts": count}
        for (layer, kept, exit_layer), count in counts.most_common()
    ]


def figures(
    dense: Sequence[Run],
    runs: Sequence[Run],
    traces: Sequence[PruningTrace],
    replays: Sequence[Run] | None = None,
    peak: Peak | None = None,
) -> dict[str, Any]:
    """Return the figures of one config, JSON-ready; the n-th runs of all sequences are of one round.

    Args:
        dense: runs of the untouched model.
        runs: those of the config.
        traces: of the batch in these runs; for the dense runs themselves, of the untouched prompts.
        replays: runs of the same decisions without measuring; None for a method that measures nothing.
        peak: where the runs themselves do not know it.

    Returns:
        Milliseconds of the batch: its prefill, and one decoding step. `flops`: multiply-adds of the batch's prefill
        over all tokens. `ceiling`: dense FLOPs / these. `speedup`: median over rounds of dense prefill / this one.
        `efficiency`: speedup / ceiling. `probe_share`: median over rounds of 1 − replay / prefill. `kv_share`: share
        of the dense prompts' keys and values that is kept after the prefill.

    """
    flops = sum(trace.flops("all") for trace in traces)
    ceiling = sum(trace.dense_flops("all") for trace in traces) / flops
    ratios = [one.prefill / run.prefill for one, run in zip(dense, runs, strict=True)]
    speedup = statistics.median(ratios)
    steps = [one.decode / run.decode for one, run in zip(dense, runs, strict=True) if one.decode and run.decode]
    probing = [(run.prefill - again.prefill, run.prefill) for run, again in zip(runs, replays or (), strict=False)]
    peaks = [run.peak for run in runs if run.peak is not None] if peak is None else [peak]
    kv = sum(trace.kv_bytes for trace in traces)
    by_layer = zip(*(trace.tokens_per_layer for trace in traces), strict=True)
    return {
        **spread("prefill_ms", [run.prefill for run in runs]),
        **spread("decode_ms_per_token", [run.decode for run in runs]),
        **spread("vision_ms", [run.vision or None for run in runs]),
        "peak_bytes": max((one.whole for one in peaks), default=None),
        "prefill_peak_bytes": max((one.prefill for one in peaks if one.prefill is not None), default=None),
        "kv_bytes": kv,
        "kv_share": round(kv / sum(trace.dense_kv_bytes for trace in traces), 4),
        "flops": flops,
        "ceiling": round(ceiling, 4),
        **spread("speedup", ratios),
        "efficiency": round(speedup / ceiling, 4),
        **spread("decode_speedup", steps),
        **(spread("probe_share", [ms / all for ms, all in probing]) | spread("probe_ms", [ms for ms, _ in probing])),
        **({} if probing else {"probe_share": 0.0, "probe_ms": 0.0}),
        "tokens_per_layer": [round(sum(layer) / len(traces), 2) for layer in by_layer],
        "plans": plans(traces),
    }


def warnings_of(name: str, row: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    """Return one line for each figure in which a config is worse than dense."""
    lines = []
    for key, stage in (("speedup", "prefill"), ("decode_speedup", "decoding")):
        if row[key] is not None and row[key] < 1:
            low, high = row[f"{key}_range"]
            speed = f"{row[key]:.2f}× its speed ({low:.2f}–{high:.2f} over the rounds)"
            lines.append(f"{name}: {stage} is SLOWER than dense, {speed}")
    for key, what in (("peak_bytes", "peak memory"), ("prefill_peak_bytes", "the decoder's peak memory in prefill")):
        if row[key] is not None and dense[key] and row[key] > dense[key]:
            lines.append(f"{name}: {what} is HIGHER than dense by {100 * (row[key] / dense[key] - 1):.1f}%")
    return lines


def changed_decisions(name: str, traces: Sequence[PruningTrace], runs: Sequence[Run]) -> list[str]:
    """Return a line for each config whose runs decided differently from the warm-up."""
    expected = [trace.tokens_per_layer for trace in traces]
    others = sum([trace.tokens_per_layer for trace in run.traces] != expected for run in runs)
    return (
        [f"{name}: {others} of {len(runs)} runs pruned other tokens than the first; FLOPs are its own"]
        if others
        else []
    )
