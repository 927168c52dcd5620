"""The parts of a checkpoint: configuration, weights, and a projector or a LoRA on top of a base model.

LoRA checkpoints are LLaVA's (`--model-base` Vicuna: an adapter and `non_lora_trainables.bin`, which holds the
projector) or plain PEFT folders on any model that loads here. The adapter is merged while weights are read, W + scale ·
B · A in fp32, so that quantization, several devices and pruning see a plain model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava.model import checkpoint
from llava.model.checkpoint import Source, find_source, raise_if_any, read_file
from llava.model.language_model.configuration_llava import is_original, read_json

ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_REST = "non_lora_trainables.bin"
_UNSUPPORTED = (
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
)
_CONTAINERS = ("base_model", "model", "language_model", "vision_model", "base_layer", "modules_to_save", "default")


@dataclass(frozen=True)
class Parts:
    """`config`: source of config.json; `weights`: of weights and tokenizer; `added`: projector or LoRA on top."""

    config: Source
    weights: Source
    added: Source | None = None

    @property
    def base(self) -> Source | None:
        """The base model, None for a checkpoint that stands alone."""
        return None if self.added is None else self.weights

    def read_weights(self, tower: Source | None = None) -> dict[str, torch.Tensor]:
        """Read all weights, projector or adapter included, without the buffers that old checkpoints carry.

        `tower`: where those of LLaVA's vision tower are, if the checkpoint does not hold them. Raises `ValueError` as
        `checkpoint.read_weights` and `merge_adapter` do.
        """
        weights = checkpoint.read_weights(self.weights)
        if tower is not None and not checkpoint.has_tower(weights):
            weights |= checkpoint.read_tower_weights(tower)
        weights = checkpoint.without_stale_buffers(weights)
        if self.added is None:
            return weights
        folder = self.added.folder
        if (folder / ADAPTER).exists():
            if self.added.hub_name is not None:
                checkpoint.download(self.added, ["adapter_model.*", _REST])
            return merge_adapter(weights, folder)
        for name, tensor in read_file(folder / "mm_projector.bin").items():
            weights[name if name.startswith("model.") else f"model.{name}"] = tensor
        return weights


def find_parts(model_path: str, model_base: str | None, hub_options: Mapping[str, Any]) -> Parts:
    """Find a model and, for a projector or an adapter, its base: `model_base`, or what the adapter names.

    Raises `ValueError` for a folder that is not there, an adapter without a base or of a kind that cannot be merged,
    and a `model_base` for a model that needs none.
    """
    source = find_source(model_path, "model_path", hub_options)
    folder = source.folder
    has_adapter = (folder / ADAPTER).exists()
    if has_adapter:
        adapter = _read_adapter(source)
        model_base = model_base or adapter.get("base_model_name_or_path")
        if not model_base:
            raise ValueError(f"{folder} is an adapter and names no base model: give model_base (--model-base)")
    if model_base is None:
        return Parts(source, source)
    base = find_source(str(model_base), "model_base", hub_options, beside=folder)
    original = (folder / "config.json").exists() and is_original(read_json(folder / "config.json"))
    if not original and not has_adapter:
        raise ValueError(f"model_base was given, but {folder} is a whole model (or none): leave model_base out")
    if not has_adapter and not (folder / "mm_projector.bin").exists():
        raise ValueError(f"{folder} has no mm_projector.bin: with a model_base, it must hold the projector or a LoRA")
    return Parts(source if original else base, base, source)


def _read_adapter(source: Source) -> dict:
    """Read and check adapter_config.json."""
    folder = source.folder
    config = read_json(folder / ADAPTER)
    if checkpoint.has_weights(folder):
        raise ValueError(f"{folder} holds a model's weights and {ADAPTER}: move one of them to another folder")
    if source.hub_name is None and not any((folder / name).exists() for name in _ADAPTER_WEIGHTS):
        raise ValueError(f"{folder} has {ADAPTER}, but no {' or '.join(_ADAPTER_WEIGHTS)}")
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder / ADAPTER} has peft_type {config.get('peft_type')!r}: only 'LORA' can be merged")
    start = config.get("init_lora_weights", True)
    changed = (
        ["init_lora_weights"] if isinstance(start, str) and start.lower() not in ("gaussian", "orthogonal") else []
    )
    if keys := [key for key in _UNSUPPORTED if config.get(key)] + changed:
        raise ValueError(
            f"{folder / ADAPTER} has {', '.join(f'{key}={config[key]!r}' for key in keys)}, which is not supported: "
            "merge it with peft (merge_and_unload) and load the merged folder"
        )
    return config


def merge_adapter(weights: Mapping[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """Return a base model's weights with a LoRA merged in and the weights that were trained beside it in place.

    Names may be spelled as by any version of transformers. Raises `ValueError` naming weights of the adapter that
    belong to none of the base model or lack their other half, and for a rank that adapter_config.json contradicts.
    """
    config = read_json(folder / ADAPTER)
    merged, names = dict(weights), {_plain(name): name for name in weights}
    halves: dict[str, dict[str, torch.Tensor]] = {}
    strangers = []
    for key, tensor in read_file(next(p for n in _ADAPTER_WEIGHTS if (p := folder / n).exists())).items():
        match = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(\.default)?(\.weight)?", key)
        if match:
            halves.setdefault(match[1], {})[match[3] + ("e" if match[2] else "")] = tensor
        elif _plain(key) in names:  # modules_to_save and trained biases: whole weights
            merged[names[_plain(key)]] = tensor
        else:
            strangers.append(key)
    strangers += [module for module in halves if _plain(module + ".weight") not in names]
    raise_if_any("adapter weights belong to no weight of the base model", folder, strangers)
    raise_if_any("LoRA weights lack their A or B", folder, [m for m, pair in halves.items() if len(pair) != 2])
    for module, pair in halves.items():
        name = names[_plain(module + ".weight")]
        merged[name] = _with_delta(merged[name], module, pair, config, folder)
    if (folder / _REST).exists():
        for key, tensor in read_file(folder / _REST).items():
            key = key.removeprefix("base_model.")
            key = key.removeprefix("model.") if key.startswith("model.model.") else key
            merged[names.get(_plain(key), key)] = tensor
    return merged


def _with_delta(
    weight: torch.Tensor, module: str, pair: Mapping[str, torch.Tensor], config: Mapping[str, Any], folder: Path
) -> torch.Tensor:
    """Return W + scale · B · A in W's dtype, computed in fp32; embeddings have it transposed."""
    embedding = "Ae" in pair
    down, up = (pair[half + "e" * embedding].float() for half in "AB")
    rank, alpha = (
        next((given for pattern, given in (config.get(patterns) or {}).items() if _is_named(module, pattern)), whole)
        for patterns, whole in (("rank_pattern", config["r"]), ("alpha_pattern", config["lora_alpha"]))
    )
    shape = (up.shape[0], down.shape[1]) if down.ndim == up.ndim == 2 else None
    shape = shape[::-1] if shape and embedding else shape
    if shape != tuple(weight.shape) or not down.shape[0] == up.shape[1] == rank:
        raise ValueError(
            f"{folder}: the LoRA of {module} has A {list(down.shape)} and B {list(up.shape)}: expected rank {rank} "
            f"({ADAPTER}) for a weight {list(weight.shape)}"
        )
    delta = up @ down * (alpha / (rank**0.5 if config.get("use_rslora") else rank))
    return (weight.float() + (delta.T if embedding else delta)).to(weight.dtype)


def _is_named(module: str, pattern: str) -> bool:
    """Whether a PEFT pattern (of `rank_pattern`, `alpha_pattern`) is about a module."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _plain(name: str) -> str:
    """Return a name without what holds its module, which PEFT, LLaVA and versions of transformers spell differently."""
    return ".".join(part for part in name.split(".") if part not in _CONTAINERS)
