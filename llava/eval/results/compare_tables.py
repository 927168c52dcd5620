"""The tables of `llava.eval.compare` for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llava.eval.results.formats import bytes_text, config_text, count_text

Text = Callable[[float], str]


def _plain(value: float) -> str:
    return f"{value:,.1f}"


COSTS: dict[str, tuple[str, Text]] = {
    "flops": ("FLOPs, visual tokens", count_text),
    "flops_all_tokens": ("FLOPs, all tokens", count_text),
    "kv_bytes": ("KV after prefill", bytes_text),
    "tokens_per_layer": ("tokens a layer", _plain),
    "kept_tokens": ("visual tokens kept", _plain),
    "generated_tokens": ("tokens generated", _plain),
    "prefill_ms": ("prefill", lambda value: f"{value:.2f} ms"),
    "decode_ms": ("decode", lambda value: f"{value:.2f} ms"),
    "vision_ms": ("vision", lambda value: f"{value:.2f} ms"),
}


def print_comparison(result: Mapping[str, Any]) -> None:
    """Print what `compare` returns."""
    console = Console(width=max(120, Console().width), highlight=False)
    for letter in ("a", "b"):
        run = result[letter]
        config = config_text(run["pruning_config"])
        lines = f"{letter.upper()}  {escape(run['answers'])}\n   {escape(run['model'])}: {escape(config)}"
        console.print(lines, soft_wrap=True)
    for note in result["notes"]:
        console.print(f"[bold]{escape(note)}[/bold]", soft_wrap=True)
    if "scores" in result:
        _print_scores(result, console)
    low, high = result["agreement"]["interval"]
    agreement = result["agreement"]
    console.print(
        f"\nagreement: {agreement['equal']} of {result['questions']} answers are the same text, "
        f"{agreement['percent']:.1f}% (95% interval {low:.1f} to {high:.1f})\n"
    )
    table = _table("a question", "A", "B", "B / A")
    for name, (label, text) in COSTS.items():
        cost = result["costs"][name]
        ratio = "" if cost["ratio"] is None else f"{cost['ratio']:.2f}×"
        table.add_row(label, text(cost["a"]), text(cost["b"]), ratio)
    console.print(table)
    for example in result.get("examples", ()):
        _print_example(example, console)


def _print_scores(result: Mapping[str, Any], console: Console) -> None:
    table = _table(result["benchmark"], "A", "B", "B - A", "95% interval")
    for name, score in result["scores"].items():
        interval = score["interval"]
        table.add_row(
            f"{name} (%)" if name == "accuracy" else name,
            f"{score['a']:.2f}",
            f"{score['b']:.2f}",
            f"{score['difference']:+.2f}",
            "none: one cluster" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}",
        )
    console.print()
    console.print(table)
    drawn, kept = result["clusters"], result["scored"] - result["fixed"] - result["broken"]
    console.print(
        f"\n{result['scored']} questions: {result['fixed']} fixed, {result['broken']} broken, {kept} with an equal "
        f"score; p = {result['p']:.2g}\n"
        f"interval: {result['resamples']} draws of {drawn['count']} clusters (questions of one {drawn['by']}), "
        f"seed {result['seed']}"
    )


def _print_example(example: Mapping[str, Any], console: Console) -> None:
    console.print(f"\n[bold]{example['change']}[/bold]  question {escape(example['question_id'])}")
    console.print(escape("   " + example["prompt"].replace("\n", "\n   ")), style="dim", soft_wrap=True)
    for letter in ("a", "b"):
        answer = example[letter]
        console.print(f"   {letter.upper()}: {escape(answer['text'])}  (score {answer['score']:.2g})", soft_wrap=True)


def _table(first: str, *headings: str) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
