"""From runs to figures: medians, ranges, and what of the ceiling that FLOPs set is reached."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from llava.model.pruning import PruningTrace

from .memory import Peak
from .rounds import Run


def spread(name: str, values: Sequence[float | None], digits: int = 4) -> dict[str, Any]:
    """Median and range under `name` and `name_range`; None where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return {name: None, f"{name}_range": None}
    middle, ends = statistics.median(known), [min(known), max(known)]
    return {name: round(middle, digits), f"{name}_range": [round(end, digits) for end in ends]}


def plans(traces: Sequence[PruningTrace]) -> list[dict[str, Any]]:
    """What was decided, the most frequent first: filter layer, visual tokens kept, exit layer, number of prompts."""
    seen = Counter(
        (trace.filter_layer, None if trace.filter_layer is None else len(trace.kept), trace.exit_layer)
        for trace in traces
    )
    return [
        {"filter_layer": layer, "kept": kept, "exit_layer": exit_layer, "prompts": count}
        for (layer, kept, exit_layer), count in seen.most_common()
    ]


def figures(
    dense: Sequence[Run],
    runs: Sequence[Run],
    traces: Sequence[PruningTrace],
    replays: Sequence[Run] | None = None,
    peak: Peak | None = None,
) -> dict[str, Any]:
    """Return the figures of one config, JSON-ready; rounds of all runs belong together.

    traces: of the batch, as these runs read it; for the dense runs themselves, of the untouched prompts
    replays: runs of the same decisions without measuring; None for a method that measures nothing
    peak: where the runs themselves do not know it

    Milliseconds are of the batch: its prefill, and one decoding step. `flops` are multiply-adds of the batch's
    prefill over all tokens; `ceiling` is dense FLOPs by these, `speedup` the median over rounds of dense prefill by
    this one, `efficiency` the share of the ceiling that it reaches. `probe_share` is the median over rounds of
    1 − replay / prefill. `kv_share` is the part of the dense prompts' keys and values that is kept after the prefill.
    """
    flops = sum(trace.flops("all") for trace in traces)
    ceiling = sum(trace.dense_flops("all") for trace in traces) / flops
    ratios = [one.prefill / run.prefill for one, run in zip(dense, runs, strict=True)]
    speedup = statistics.median(ratios)
    steps = [one.decode / run.decode for one, run in zip(dense, runs, strict=True) if one.decode and run.decode]
    shares = [1 - again.prefill / run.prefill for again, run in zip(replays or (), runs, strict=bool(replays))]
    probing = [run.prefill - again.prefill for again, run in zip(replays or (), runs, strict=bool(replays))]
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
        **(spread("probe_share", shares) if replays else {"probe_share": 0.0, "probe_share_range": None}),
        **(spread("probe_ms", probing) if replays else {"probe_ms": 0.0, "probe_ms_range": None}),
        "tokens_per_layer": [round(sum(layer) / len(traces), 2) for layer in by_layer],
        "plans": plans(traces),
    }


def costs_more(name: str, found: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    """Where a config costs more than dense, one line each."""
    lines = []
    if found["speedup"] < 1:
        lines.append(_slower(name, "prefill", found, "speedup"))
    if found["decode_speedup"] is not None and found["decode_speedup"] < 1:
        lines.append(_slower(name, "decoding", found, "decode_speedup"))
    for key, what in (("peak_bytes", "peak memory"), ("prefill_peak_bytes", "the decoder's peak memory in prefill")):
        if found[key] is not None and dense[key] and found[key] > dense[key]:
            lines.append(f"{name}: {what} is HIGHER than dense by {100 * (found[key] / dense[key] - 1):.1f}%")
    return lines


def _slower(name: str, stage: str, found: dict[str, Any], key: str) -> str:
    low, high = found[f"{key}_range"]
    return f"{name}: {stage} is SLOWER than dense, {found[key]:.2f}× its speed ({low:.2f}–{high:.2f} over the rounds)"
