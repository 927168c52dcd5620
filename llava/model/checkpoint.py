"""Checkpoint files: find a folder, read its weights, and check that they are exactly what a model needs."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from llava.files import fingerprint
from llava.model.language_model.configuration_llava import read_json

WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_SMALL_FILES = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "mm_projector.bin")
_MODEL_FILES = (".json", ".model", ".safetensors", ".bin")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Buffers that older transformers saved and that are computed from the configuration today.
_STALE_BUFFER = re.compile(r".+\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|.*\bembeddings\.position_ids")
_TOWER = "model.vision_tower.vision_tower."
_CLIP_TEXT_PART = re.compile(r"text_model\..*|logit_scale|(text|visual)_projection\.weight")


@dataclass(frozen=True)
class Source:
    """Where a model's files are: a folder, and for one that came from the hub its name there and download options."""

    folder: Path
    hub_name: str | None = None
    hub_options: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> str:
        """Return the hub name with its revision, or the folder's name with a hash of the model files in it.

        The vision tower's folder is part of it, and so are configurations and tokenizers.
        """
        if self.hub_name:
            return f"{self.hub_name}@{self.folder.name}"
        digest = hashlib.sha256()
        files = sorted(path for path in [*self.folder.glob("*"), *self.folder.glob("*/*")] if path.is_file())
        for path in files:
            if path.suffix in _MODEL_FILES and path.name != "pruning.json":
                digest.update(f"{path.relative_to(self.folder).as_posix()} {fingerprint(path)}\n".encode())
        return f"{self.folder.resolve().name}:{digest.hexdigest()[:16]}"


def find_source(name: str, role: str, hub_options: Mapping[str, Any], beside: Path | None = None) -> Source:
    """Find a model by path, path relative to `beside`, or hub name (fetches all files but the weights).

    `role` says in errors what the model is for; `hub_options` go to `huggingface_hub.snapshot_download` (cache_dir,
    revision, token, local_files_only). Raises `ValueError` if there is no such folder and it cannot be fetched.
    """
    for path in ([beside / name] if beside else []) + [Path(name).expanduser()]:
        if path.is_dir():
            return Source(path)
    if not _HUB_NAME.fullmatch(name):
        raise ValueError(f"{role} {name!r}: no such folder, and not a name on the Hugging Face Hub")
    try:
        return Source(_download(name, list(_SMALL_FILES), hub_options), name, hub_options)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{role} {name!r} is neither a folder here nor could it be fetched from the Hugging Face Hub ({reason}): "
            f"download it first, or give the path of a local copy"
        ) from error


def _download(name: str, patterns: list[str], options: Mapping[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["training_args.bin"], **options))


def download(source: Source, patterns: list[str]) -> None:
    """Fetch more files of a model on the hub."""
    _download(source.hub_name, patterns, source.hub_options)


def check_has_weights(source: Source) -> None:
    """Raise `ValueError` for a folder without weights; those on the hub are downloaded when they are read."""
    if source.hub_name is None and not has_weights(source.folder):
        raise _no_weights(source.folder)


def _no_weights(folder: Path) -> ValueError:
    return ValueError(f"{folder} holds no weights: expected one of {', '.join(WEIGHT_FILES)}")


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds weights, or the index of weights, under one of the usual names."""
    return any((folder / name).exists() for name in WEIGHT_FILES)


def read_weights(source: Source) -> dict[str, torch.Tensor]:
    """Read a model's weights, safetensors before .bin, single or sharded; tensors stay mapped to the files.

    Weights on the hub are downloaded first, .bin only where there is no safetensors. Raises `ValueError` if there are
    no weights, a shard is missing or a file is not readable.
    """
    folder = source.folder
    if source.hub_name is not None:
        download(source, ["*.safetensors"])
        if not any(folder.glob("*.safetensors")):
            download(source, ["pytorch_model*.bin"])
    name = next((name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if name is None:
        raise _no_weights(folder)
    if not name.endswith(".index.json"):
        return read_file(folder / name)
    index = read_json(folder / name).get("weight_map")
    if not isinstance(index, dict):
        raise ValueError(f"{folder / name} has no weight_map: the index of a sharded checkpoint needs one")
    shards = sorted(set(index.values()))
    raise_if_any("shards are missing", folder, [shard for shard in shards if not (folder / shard).is_file()])
    weights = {key: tensor for shard in shards for key, tensor in read_file(folder / shard).items()}
    raise_if_any(f"weights of {name} are not in its shards", folder, index.keys() - weights.keys())
    return weights


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """Read one .safetensors or .bin file (the latter with `weights_only=True`); `ValueError` if it is not readable."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be mapped
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is not a readable weight file: {str(error).splitlines()[0]}") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ValueError(f"{path} is not a state dict: expected names and tensors")
    return weights


def without_stale_buffers(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop the buffers that old checkpoints carry (rotary `inv_freq`, CLIP `position_ids`), and nothing else."""
    return {name: tensor for name, tensor in weights.items() if not _STALE_BUFFER.fullmatch(name)}


def read_tower_weights(source: Source) -> dict[str, torch.Tensor]:
    """Read a CLIP's vision weights under LLaVA's names; of a whole CLIP the text part is left out."""
    weights = read_weights(source)
    return {_TOWER + name: tensor for name, tensor in weights.items() if not _CLIP_TEXT_PART.fullmatch(name)}


def has_tower(weights: Iterable[str]) -> bool:
    """Return whether a checkpoint holds the vision tower itself."""
    return any(name.startswith(_TOWER) for name in weights)


def match_tower_names(weights: Mapping[str, torch.Tensor], expected: Iterable[str]) -> dict[str, torch.Tensor]:
    """Rename the tower's weights to this transformers' spelling: with or without `vision_model.`, which differs."""
    prefixed = _TOWER + "vision_model."
    prefix = prefixed if any(name.startswith(prefixed) for name in expected) else _TOWER
    return {
        prefix + name.removeprefix(_TOWER).removeprefix("vision_model.") if name.startswith(_TOWER) else name: tensor
        for name, tensor in weights.items()
    }


def check_weights(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Raise `ValueError` naming weights that are missing, unexpected, mis-shaped or not floating point."""
    raise_if_any("weights are missing", folder, expected.keys() - found.keys())
    raise_if_any("weights are unexpected", folder, found.keys() - expected.keys())
    wrong = [
        f"{name} {list(tensor.shape)} instead of {list(expected[name].shape)}"
        for name, tensor in found.items()
        if tensor.shape != expected[name].shape
    ]
    raise_if_any("weights have the wrong shape", folder, wrong)
    check_floating(found, folder)


def check_floating(found: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Raise `ValueError` naming weights that are not floating point."""
    quantized = [f"{name} ({tensor.dtype})" for name, tensor in found.items() if not tensor.is_floating_point()]
    raise_if_any("weights are not floating point", folder, quantized)


def raise_if_any(what: str, folder: Path, names: Iterable[str], shown: int = 5) -> None:
    """Raise `ValueError` with the first of `names`, if there are any."""
    if names := sorted(names):
        more = f" and {len(names) - shown} more" if len(names) > shown else ""
        raise ValueError(f"{folder}: {len(names)} {what}: {', '.join(names[:shown])}{more}")
