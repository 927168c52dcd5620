"""The chat's output about an answer: the summary line and the trace as tables. Layers count from 0."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from llava.eval.results.formats import bytes_text, count_text
from llava.eval.results.table import Column, Table

if TYPE_CHECKING:
    from rich.console import Console

    from llava.model.pruning import PruningTrace
    from llava.model.pruning.grid import Frame

    from .chat import Reply

MOST_POSITIONS = 20
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Drop control characters except newline and tab: a model must not steer the terminal."""
    return _CONTROL.sub("", text)


def summary_line(reply: Reply) -> str:
    """Return one line: tokens kept, layers, savings and time."""
    trace = reply.trace
    if trace is None:
        parts = ["pruning off", f"{reply.prompt_tokens} prompt tokens"]
    elif not trace.visual_tokens:
        parts = ["no image", f"{reply.prompt_tokens} prompt tokens"]
    else:
        kept = min(trace.visual_per_layer) if trace.filter_layer is None else len(trace.kept)
        parts = [
            f"kept {kept} of {trace.visual_tokens} visual tokens",
            "no filter layer" if trace.filter_layer is None else f"filter layer {trace.filter_layer}",
            "no exit" if trace.exit_layer is None else f"exit layer {trace.exit_layer}",
            f"FLOPs {_change(trace.flops(), trace.dense_flops())}",
        ]
    parts.append(f"{reply.prefill_ms:.0f} ms prefill + {reply.decode_ms:.0f} ms decode, {reply.new_tokens} tokens")
    parts += {"limit": ["cut at the token limit"], "stopped": ["stopped"]}.get(reply.ended, [])
    return " · ".join(parts)


def print_trace(reply: Reply, to: Console) -> None:
    """Print the trace of one answer: its layers, the kept positions by influence, and the totals."""
    trace = reply.trace
    layers = Table(
        ["layer", "tokens", "visual", "KV", "text reads", "min cos", "max L2", Column("event", "", left=True)]
    )
    for after, left in trace.cuts:
        if after < 0:
            row = {"tokens": trace.prompt_tokens, "visual": trace.visual_tokens, "event": f"keeps {len(left)}"}
            layers.add(layer="input", **row)
    runs = groupby(range(len(trace.tokens_per_layer)), key=lambda layer: _layer_row(trace, layer))
    for row, equal in runs:  # neighbouring layers of which nothing differs are one row
        first, *others = equal
        layers.add(f"{first}–{others[-1]}" if others else str(first), **row)
    layers.print(to=to)
    if trace.kept:
        _print_kept(reply, to)
    if trace.frames:
        to.print(f"kept per frame: {kept_per_frame(trace)}", soft_wrap=True)
    totals = {
        "FLOPs, visual tokens": (count_text, trace.flops(), trace.dense_flops()),
        "FLOPs, all tokens": (count_text, trace.flops("all"), trace.dense_flops("all")),
        "KV cache": (bytes_text, trace.kv_bytes, trace.dense_kv_bytes),
    }
    for name, (text, now, dense) in totals.items():
        to.print(f"{name}: {text(now)} of {text(dense)} ({_change(now, dense)})", soft_wrap=True)


def _layer_row(trace: PruningTrace, layer: int) -> dict[str, str]:
    visual, probes = trace.visual_per_layer[layer], {probe.layer: probe for probe in trace.probes}
    left, probe = dict(trace.cuts).get(layer), probes.get(layer)
    event = "" if left is None else f"keeps {len(left)}"
    if layer == trace.filter_layer:
        event = f"filter layer: keeps {len(trace.kept)}"
    if layer == trace.exit_layer:
        event = "exit: text alone"
    return {
        "tokens": str(trace.tokens_per_layer[layer]),
        "visual": str(visual),
        "KV": str(trace.kv_tokens_per_layer[layer]),
        "text reads": trace.rules[layer].text if visual else "–",
        "min cos": f"{probe.min_cosine:.4f}" if probe else "",
        "max L2": f"{probe.max_l2:.3f}" if probe else "",
        "event": event,
    }


def kept_per_frame(trace: PruningTrace) -> str:
    """Return the tokens kept of every frame, video by video: "3 0 1 of 6 each; image 4 of 20"."""
    parts = []
    for _, pairs in groupby(zip(trace.frames, trace.kept_per_frame(), strict=True), key=lambda pair: pair[0].medium):
        frames, kept = zip(*pairs, strict=True)
        what = "" if len(frames) > 1 else "image "
        parts.append(f"{what}{' '.join(map(str, kept))} of {frames[0].tokens}{' each' if len(frames) > 1 else ''}")
    return "; ".join(parts)


def _print_kept(reply: Reply, to: Console) -> None:
    """Print the kept positions, the strongest first where the method measured influence, else in their order."""
    trace, grid = reply.trace, reply.grid
    influence = dict(zip(trace.kept, trace.influence, strict=True)) if trace.influence else {}
    ranked = sorted(trace.kept, key=lambda position: -influence.get(position, 0))
    which = "the strongest" if influence else "the first"
    shown = f"{which} {MOST_POSITIONS} of {len(ranked)}" if len(ranked) > MOST_POSITIONS else str(len(ranked))
    columns = ["position"]
    if grid is not None:
        columns.append("patch: row, column from 0")
    if trace.frames:
        columns.append("frame from 0: row, column")
    if influence:
        columns.append(Column("influence", "influence (L2)", ".3f"))
    table = Table(columns)
    for position in ranked[:MOST_POSITIONS]:
        row = {"influence": influence.get(position)}
        if grid is not None:
            patch = divmod(position - reply.visual_start, grid[1])
            row[columns[1]] = f"{patch[0]}, {patch[1]} of {grid[0]}×{grid[1]}"
        if trace.frames:
            row["frame from 0: row, column"] = _place(position, trace.frames)
        table.add(str(position), **row)
    table.print(f"kept: {shown}", to=to)


def _place(position: int, frames: Sequence[Frame]) -> str:
    """Return where a visual token lies, in words; nothing for a token of no frame, or of an image without a grid."""
    frame = next((one for one in frames if one.start <= position < one.start + one.tokens), None)
    if frame is None or not frame.columns:
        return ""
    row, column = divmod(position - frame.start, frame.columns)
    return f"{frame.number}: {row}, {column}"


def _change(now: float, dense: float) -> str:
    change = 100 * (now / dense - 1) if dense else 0
    return f"{change:+.1f}%".replace("-", "−") if round(change, 1) else "±0%"


def card_sentence(folder: Path) -> str | None:
    """Return the first sentence of a checkpoint's model card (README.md), None where there is none."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    card = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n", card):
        text = " ".join(paragraph.split())
        if text and not text.startswith(("#", "|", "<", "!", "```", "- ")):
            return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
    return None
