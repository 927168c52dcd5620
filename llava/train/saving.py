"""What a run writes: files and names that LLaVA's builder reads, and `load_pretrained_model`; and reads to resume.

A projector alone: `mm_projector.bin`. LoRA: PEFT's adapter, and beside it `non_lora_trainables.bin`. Full: the model's
weights with tokenizer and processor. All have `config.json` in LLaVA's layout. Nothing is unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llava.files import replacing, write_json
from llava.model import checkpoint
from llava.model.language_model.configuration_llava import LlavaConfig
from llava.model.silence import silence
from llava.train.models import PROJECTOR, Prepared

_REST = "non_lora_trainables.bin"
_BESIDE = ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json", "chat_template*")
_BESIDE += (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)

State = Mapping[str, torch.Tensor]


def is_lora(model: nn.Module) -> bool:
    """Whether it is a PEFT model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def save(model: nn.Module, prepared: Prepared, folder: Path, state: State | None, dtype: torch.dtype | None) -> None:
    """Write a model's trained weights; `state`: gathered from other devices; `dtype`: on disk (None: as they are)."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    state = {**model.state_dict()} if state is None else dict(state)
    if dtype is not None:
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if is_lora(model):
        with silence():
            model.save_pretrained(folder, state_dict=state)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        rest = {name: state[name].cpu().clone() for name in names if "lora_" not in name}
        if rest:
            _write_bin(folder / _REST, rest)
    elif all(PROJECTOR in name for name in names):
        _write_bin(folder / "mm_projector.bin", {name: state[name].cpu().clone() for name in names})
    else:
        save_whole(model, prepared.parts.weights.folder, folder, state)
        return
    if prepared.llava is not None:
        write_json(folder / "config.json", llava_config(model, dtype), indent=2)


def save_whole(model: PreTrainedModel, beside: Path, folder: Path, state: State | None = None) -> None:
    """Write a model's weights and configuration; tokenizer, processor and generation settings as `beside` has them."""
    with silence():
        model.save_pretrained(folder, state_dict=state)
    for path in (path for pattern in _BESIDE for path in beside.glob(pattern) if path.is_file()):
        shutil.copyfile(path, folder / path.name)
    if model.config.model_type == LlavaConfig.model_type:
        write_json(folder / "config.json", llava_config(model, None), indent=2)


def llava_config(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Any]:
    """Return config.json in LLaVA's layout, with the rotary base where transformers 4 looks for it."""
    base: PreTrainedModel = model.get_base_model() if is_lora(model) else model
    config = json.loads(base.config.to_json_string(use_diff=False))
    rope = config.pop("rope_parameters", None) or {}
    config |= {"rope_theta": rope.get("rope_theta", 10000.0), "architectures": ["LlavaLlamaForCausalLM"]}
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    config.pop("quantization_config", None)
    config["torch_dtype"] = str(dtype or config.pop("dtype", None) or base.dtype).removeprefix("torch.")
    return config


def restore(model: nn.Module, folder: Path) -> None:
    """Read back what `save` wrote into a model that is trained alike; `ValueError` unless it is exactly that."""
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if is_lora(model):
        found = {name.replace(".weight", ".default.weight"): tensor for name, tensor in _adapter(folder).items()}
        found |= checkpoint.read_file(folder / _REST) if (folder / _REST).exists() else {}
    elif (folder / "mm_projector.bin").exists():
        found = checkpoint.read_file(folder / "mm_projector.bin")
    else:
        found = checkpoint.read_weights(checkpoint.Source(folder))
        found = {name: tensor for name, tensor in found.items() if name in wanted}
    checkpoint.raise_if_any("trained weights are missing", folder, wanted - found.keys())
    checkpoint.raise_if_any("weights are not trained", folder, found.keys() - wanted)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)


def _adapter(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read_file(folder / "adapter_model.safetensors")


def _write_bin(path: Path, state: State) -> None:
    with replacing(path, "wb") as file:
        torch.save(dict(state), file)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole `checkpoint-N` of a run, None without one; halves, left by a kill, are deleted."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        if not (path / "trainer_state.json").exists():  # what Trainer writes last
            shutil.rmtree(path)
        elif path.name.removeprefix("checkpoint-").isdigit():
            found[int(path.name.removeprefix("checkpoint-"))] = path
    return found[max(found)] if found else None
