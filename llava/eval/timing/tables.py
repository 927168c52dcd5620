"""The tables of `llava.eval.bench` for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llava.eval.results.formats import beside_dense, bytes_text, count_text

TIMES = ("config", "prefill", "speed-up", "ceiling", "efficiency", "probing", "decode a token", "vision")
COSTS = (
    "config",
    "FLOPs, all tokens",
    "KV",
    "peak memory",
    "decoder's in prefill",
    "tokens a layer",
    "what was pruned",
)


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """Print what `bench` returns."""
    rows = {"dense": result["dense"], **result["configs"]}
    console.print(_table(TIMES, [_times(name, row) for name, row in rows.items()]))
    console.print()
    console.print(_table(COSTS, [_costs(name, row, result["dense"]) for name, row in rows.items()]))
    for line in result["warnings"]:
        console.print(f"[bold]{escape(line)}[/bold]", soft_wrap=True)


def _times(name: str, row: Mapping[str, Any]) -> list[str]:
    if name == "dense":
        compared = ["1.00×", "1.00×", "", ""]
    else:
        low, high = row["speedup_range"]
        compared = [
            f"{row['speedup']:.2f}× ({low:.2f}–{high:.2f})",
            f"{row['ceiling']:.2f}×",
            f"{100 * row['efficiency']:.0f}%",
            f"{100 * row['probe_share']:.1f}%" if row["probe_ms_range"] else "none",
        ]
    prefill, decode, vision = (_milliseconds(row, key) for key in ("prefill_ms", "decode_ms_per_token", "vision_ms"))
    return [name, prefill, *compared, decode, vision]


def _milliseconds(row: Mapping[str, Any], key: str) -> str:
    if row[key] is None:
        return "not run"
    low, high = row[f"{key}_range"]
    return f"{_digits(row[key])} ms ({_digits(low)}–{_digits(high)})"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _costs(name: str, row: Mapping[str, Any], dense: Mapping[str, Any]) -> list[str]:
    def beside(key: str, text) -> str:
        if row[key] is None:
            return "unknown"
        return beside_dense(text(row[key]), row[key] / dense[key]) if dense[key] else text(row[key])

    layers = row["tokens_per_layer"]
    pruned = "nothing" if name == "dense" else plan_text(row["plans"])
    mean = f"{sum(layers) / len(layers):,.1f}"
    memory = [beside(key, bytes_text) for key in ("kv_bytes", "peak_bytes", "prefill_peak_bytes")]
    return [name, beside("flops", count_text), *memory, mean, pruned]


def plan_text(plans: Sequence[Mapping[str, Any]]) -> str:
    """Filter layers, tokens kept and exit layers of a batch in one line."""
    parts = []
    for key, word in (("filter_layer", "filter layer"), ("kept", "kept"), ("exit_layer", "exit layer")):
        values = [plan[key] for plan in plans if plan[key] is not None]
        if values:
            low, high = min(values), max(values)
            some = "" if len(values) == len(plans) else " (some)"
            parts.append(f"{word} {low if low == high else f'{low}–{high}'}{some}")
    return ", ".join(parts) or "see tokens_per_layer"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        left = heading in ("config", "what was pruned")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table
