"""What the chat prints about an answer: the dim line, and the trace as tables. Layers count from 0."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from llava.model.pruning import PruningTrace

    from .chat import Reply

MOST_POSITIONS = 20
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Drop control characters (but newline and tab): a model must not steer the terminal."""
    return _CONTROL.sub("", text)


def one_line(error: BaseException) -> str:
    """Return an error's message, or its kind where it has none, as one line."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def summary_line(reply: Reply) -> str:
    """Say in one line what was kept, where, what it saved and how long it took."""
    parts = []
    if reply.trace is None:
        parts += ["pruning off", f"{reply.prompt_tokens} prompt tokens"]
    elif not reply.trace.visual_tokens:
        parts += ["no image", f"{reply.prompt_tokens} prompt tokens"]
    else:
        parts += _decisions(reply.trace)
    parts.append(f"{reply.prefill_ms:.0f} ms prefill + {reply.decode_ms:.0f} ms decode, {reply.new_tokens} tokens")
    parts += {"limit": ["cut at the token limit"], "stopped": ["stopped"]}.get(reply.ended, [])
    return " · ".join(parts)


def _decisions(trace: PruningTrace) -> list[str]:
    nothing_chosen = trace.filter_layer is None
    kept = min(trace.visual_per_layer) if nothing_chosen else len(trace.kept)
    return [
        f"kept {kept} of {trace.visual_tokens} visual tokens",
        "no filter layer" if nothing_chosen else f"filter layer {trace.filter_layer}",
        "no exit" if trace.exit_layer is None else f"exit layer {trace.exit_layer}",
        f"FLOPs {_saving(trace.flops(), trace.dense_flops())}",
    ]


def _saving(now: float, dense: float) -> str:
    change = 0 if not dense else 100 * (now / dense - 1)
    return f"{change:+.1f}%".replace("-", "−") if round(change, 1) else "±0%"


def trace_tables(reply: Reply) -> RenderableType:
    """Return the tables of one answer's trace: its layers, the kept positions by influence, the totals."""
    trace = reply.trace
    layers = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("layer", "tokens", "visual", "KV", "text reads", "min cos", "max L2"):
        layers.add_column(name, justify="left" if name == "text reads" else "right", no_wrap=True)
    layers.add_column("")
    for after, left in trace.cuts:
        if after < 0:
            layers.add_row("input", str(trace.prompt_tokens), str(trace.visual_tokens), *[""] * 4, f"keeps {len(left)}")
    for first, last in _equal_layers(trace):
        layers.add_row(str(first) if first == last else f"{first}–{last}", *_layer_cells(trace, first))
    parts: list[RenderableType] = [layers]
    if trace.kept:
        parts.append(_kept_table(trace, reply.visual_start, reply.grid))
    parts.append(Text(_totals(trace)))
    return Group(*parts)


def _layer_cells(trace: PruningTrace, layer: int) -> tuple[str, ...]:
    visual = trace.visual_per_layer[layer]
    probe = next((probe for probe in trace.probes if probe.layer == layer), None)
    left = dict(trace.cuts).get(layer)
    event = "" if left is None else f"keeps {len(left)}"
    if layer == trace.filter_layer:
        event = f"filter layer: keeps {len(trace.kept)}"
    if layer == trace.exit_layer:
        event = "exit: text alone"
    return (
        str(trace.tokens_per_layer[layer]),
        str(visual),
        str(trace.kv_tokens_per_layer[layer]),
        trace.rules[layer].text if visual else "–",
        f"{probe.min_cosine:.4f}" if probe else "",
        f"{probe.max_l2:.3f}" if probe else "",
        event,
    )


def _equal_layers(trace: PruningTrace) -> list[tuple[int, int]]:
    """Join neighbouring layers of which nothing differs: first and last layer of each run."""
    runs = groupby(range(len(trace.tokens_per_layer)), key=lambda layer: _layer_cells(trace, layer))
    groups = [list(layers) for _, layers in runs]
    return [(group[0], group[-1]) for group in groups]


def _kept_table(trace: PruningTrace, visual_start: int | None, grid: tuple[int, int] | None) -> Table:
    """Tell the kept positions, the strongest first where the method measured influence, else in their order."""
    influence = dict(zip(trace.kept, trace.influence, strict=True)) if trace.influence else {}
    ranked = sorted(trace.kept, key=lambda position: -influence.get(position, 0))
    which = "the strongest" if influence else "the first"
    shown = f"{which} {MOST_POSITIONS} of {len(ranked)}" if len(ranked) > MOST_POSITIONS else str(len(ranked))
    table = Table(title=f"kept: {shown}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("position", justify="right")
    if grid is not None:
        table.add_column("patch: row, column from 0", justify="right")
    if influence:
        table.add_column("influence (L2)", justify="right")
    for position in ranked[:MOST_POSITIONS]:
        patch = divmod(position - visual_start, grid[1]) if grid is not None else ()
        place = [f"{patch[0]}, {patch[1]} of {grid[0]}×{grid[1]}"] if grid is not None else []
        table.add_row(str(position), *place, *([f"{influence[position]:.3f}"] if influence else []))
    return table


def _totals(trace: PruningTrace) -> str:
    flops = {
        name: f"{_scaled(trace.flops(count))} of {_scaled(trace.dense_flops(count))} "
        f"({_saving(trace.flops(count), trace.dense_flops(count))})"
        for name, count in (("visual tokens", "visual"), ("all tokens", "all"))
    }
    memory = f"{_scaled(trace.kv_bytes)}B of {_scaled(trace.dense_kv_bytes)}B"
    return "\n".join(
        [
            *(f"FLOPs, {name}: {value}" for name, value in flops.items()),
            f"KV cache: {memory} ({_saving(trace.kv_bytes, trace.dense_kv_bytes)})",
        ]
    )


def _scaled(count: float) -> str:
    for prefix, unit in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= unit:
            return f"{count / unit:.3g} {prefix}"
    return f"{count / 1e3:.3g} k"


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
