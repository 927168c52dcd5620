"""Output of a bench: settings, machine, and the tables of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from rich.console import Console

from llava.eval.results.formats import bytes_text, change_text, count_text
from llava.eval.results.table import Column, Table
from llava.model.pruning import PruningConfig
from llava.utils import device_name

from .options import BenchOptions
from .workload import Workload

RANDOM_EMBEDDINGS = "none: visual tokens are random embeddings"


def settings(
    options: BenchOptions, workload: Workload, dtype: torch.dtype, forced: Mapping[str, PruningConfig]
) -> dict[str, Any]:
    """Return what was run, JSON-ready; token counts are means over prompts, `force_plan` the forced configs."""
    tokens, visual = (sum(part) / len(workload.sizes) for part in zip(*workload.sizes, strict=True))
    given = ("batch_size", "images", "frames", "questions_per_image", "prefix_cache", "new_tokens", "rounds", "seed")
    return {
        "model": options.model,
        "weights": "random" if workload.random else "loaded",
        "weight_bytes": workload.weight_bytes,
        "layers": workload.shape.layers,
        "dtype": str(dtype).removeprefix("torch."),
        **{name: getattr(options, name) for name in given},
        "text_tokens": tokens - visual,
        "visual_tokens": visual,
        "vision": RANDOM_EMBEDDINGS if workload.visual_mask is not None or options.frames else "run",
        "cuda_graphs": None if workload.graphs is None else workload.graphs.recorded,
        "force_plan": {name: config.to_dict() for name, config in forced.items()} or None,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Return what it ran on, JSON-ready; `threads` are those of torch on the CPU."""
    return {
        "device": device.type,
        "name": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def heading(settings: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    """Return the lines above the tables."""
    threads = f", {machine['threads']} threads" if machine["device"] == "cpu" else ""
    count = settings["questions_per_image"]
    what = f"batch {settings['batch_size']}" + (f", {count} questions about one image" if count else "")
    lines = [
        f"{settings['model']}, {settings['weights']} weights, {settings['layers']} layers, {settings['dtype']}",
        f"{machine['name']}{threads}, torch {machine['torch']}, transformers {machine['transformers']}",
        f"{what}; per prompt {settings['text_tokens']:.0f} text, {settings['visual_tokens']:.0f} visual and "
        f"{settings['new_tokens']} new tokens; medians (and ranges) of {settings['rounds']} rounds",
    ]
    if settings["vision"] == RANDOM_EMBEDDINGS:
        lines.append("no vision tower: visual tokens are random embeddings")
    if settings["cuda_graphs"] is not None:
        lines.append(f"pruned runs replay CUDA graphs: {settings['cuda_graphs']} recordings of layers")
    keys = ("layer_threshold", "tokens_threshold", "exit_threshold", "exit_patience")
    for name, config in (settings["force_plan"] or {}).items():
        lines.append(f"--force-plan: {name} with " + ", ".join(f"{key} {config[key]:.6g}" for key in keys))
    return "\n".join(lines)


def print_times(result: Mapping[str, Any], to: Console | None = None) -> None:
    """Print the times, costs and warnings that `bench` returns."""
    rows = {"dense": result["dense"], **result["configs"]}
    times = ("config", "prefill", "speed-up", "ceiling", "efficiency", "probing", "decode per token", "vision")
    Table(times, [dict(zip(times, _times(name, row), strict=True)) for name, row in rows.items()]).print(to=to)
    print()
    columns = [
        "config",
        Column("flops", "FLOPs, all tokens"),
        Column("kv_bytes", "KV"),
        Column("peak_bytes", "peak memory"),
        Column("prefill_peak_bytes", "decoder in prefill"),
        Column("tokens", "tokens per layer", ",.1f"),
        Column("pruned", "what was pruned", left=True),
    ]
    Table(columns, [_costs(name, row, result["dense"]) for name, row in rows.items()]).print(
        notes=result["warnings"], to=to
    )


def _times(name: str, row: Mapping[str, Any]) -> list[str]:
    compared = ["1.00×", "1.00×", "", ""]
    if name != "dense":
        probing = f"{100 * row['probe_share']:.1f}%" if row["probe_ms_range"] else "none"
        compared = [ratio(row, "speedup"), f"{row['ceiling']:.2f}×", f"{100 * row['efficiency']:.0f}%", probing]
    prefill, decode, vision = (_milliseconds(row, key) for key in ("prefill_ms", "decode_ms_per_token", "vision_ms"))
    return [name, prefill, *compared, decode, vision]


def ratio(row: Mapping[str, Any], key: str) -> str:
    """Return a ratio with its range over the rounds."""
    low, high = row[f"{key}_range"]
    return f"{row[key]:.2f}× ({low:.2f}–{high:.2f})"


def _milliseconds(row: Mapping[str, Any], key: str) -> str:
    if row[key] is None:
        return "not run"
    low, high = row[f"{key}_range"]
    return f"{_digits(row[key])} ms ({_digits(low)}–{_digits(high)})"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _costs(name: str, row: Mapping[str, Any], dense: Mapping[str, Any]) -> dict[str, Any]:
    def beside(key: str, form) -> str:
        if row[key] is None:
            return "unknown"
        return change_text(form(row[key]), row[key] / dense[key]) if dense[key] else form(row[key])

    layers = row["tokens_per_layer"]
    costs = {key: beside(key, bytes_text) for key in ("kv_bytes", "peak_bytes", "prefill_peak_bytes")}
    pruned = "nothing" if name == "dense" else plan_text(row["plans"])
    return costs | {
        "config": name,
        "flops": beside("flops", count_text),
        "tokens": sum(layers) / len(layers),
        "pruned": pruned,
    }


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


def print_questions(result: Mapping[str, Any], to: Console | None = None) -> None:
    """Print the rates that `shared_image.measure` returns."""
    columns = [
        "config",
        Column("questions_per_second", "questions/s", ".3g"),
        Column("questions_per_second_reuse", "with cache", ".3g"),
        *(Column(heading) for heading in ("from cache", "from pruning", "together", "rows reused")),
    ]
    gains = {"from cache": "gain_reuse", "from pruning": "gain_pruning", "together": "gain"}
    table = Table(columns)
    for name, row in result.items():
        share = "none" if row["rows_reused"] is None else f"{100 * row['rows_reused']:.0f}%"
        shown = {heading: ratio(row, key) for heading, key in gains.items()}
        table.rows.append({"config": name, **row, **shown, "rows reused": share})
    changed = [name for name, row in result.items() if row["same_decisions"] is False]
    table.print(
        notes=[f"{name}: some prompts were pruned otherwise with the cache (rounding)" for name in changed], to=to
    )
