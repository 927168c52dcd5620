"""What a bench was run with and on: the context without which its figures mean nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
import transformers

from llava.model.pruning import PruningConfig
from llava.utils import device_name

from .subject import Subject

EMBEDDED = "none: visual tokens are random embeddings"


def settings(
    args: argparse.Namespace, subject: Subject, dtype: torch.dtype, fired: Mapping[str, PruningConfig]
) -> dict[str, Any]:
    """Return what was run, JSON-ready; token counts are means over prompts, `fire` the calibrated configs."""
    tokens, visual = (sum(part) / len(subject.sizes) for part in zip(*subject.sizes, strict=True))
    return {
        "model": args.model_path or args.shape,
        "weights": "random" if subject.random else "loaded",
        "weight_bytes": subject.weight_bytes,
        "layers": subject.shape.layers,
        "dtype": str(dtype).removeprefix("torch."),
        "batch_size": args.batch_size,
        "images": args.images,
        "text_tokens": tokens - visual,
        "visual_tokens": visual,
        "vision": EMBEDDED if subject.visual_mask is not None else "run",
        "new_tokens": args.new_tokens,
        "repeats": args.repeats,
        "seed": args.seed,
        "cuda_graphs": None if subject.graphs is None else subject.graphs.recorded,
        "fire": {name: config.to_dict() for name, config in fired.items()} or None,
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
    lines = [
        f"{settings['model']}, {settings['weights']} weights, {settings['layers']} layers, {settings['dtype']}; "
        f"{machine['name']}{threads}, torch {machine['torch']}, transformers {machine['transformers']}",
        f"batch {settings['batch_size']}, a prompt: {settings['text_tokens']:.0f} text and "
        f"{settings['visual_tokens']:.0f} visual tokens, {settings['new_tokens']} new ones; "
        f"medians (and ranges) of {settings['repeats']} rounds",
    ]
    if settings["vision"] == EMBEDDED:
        lines.append("no vision tower: visual tokens are random embeddings")
    if settings["cuda_graphs"] is not None:
        lines.append(f"pruned runs replay CUDA graphs: {settings['cuda_graphs']} recordings of layers")
    lines += [f"--fire: {name} with {_thresholds(config)}" for name, config in (settings["fire"] or {}).items()]
    return "\n".join(lines)


def _thresholds(config: Mapping[str, Any]) -> str:
    keys = ("layer_threshold", "tokens_threshold", "exit_threshold", "exit_patience")
    return ", ".join(f"{key} {config[key]:.6g}" for key in keys)
