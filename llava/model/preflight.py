"""Everything about a model and a pruning config that can be checked before any weight is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from llava.cli import ModelOptions
from llava.model import checkpoint
from llava.model.formats import Layout, read_layout, read_transformers_config
from llava.model.inputs import DEFAULT_CONV_MODE
from llava.model.language_model.configuration_llava import HIDROP, read_config, read_json, read_vision_config
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.loading import quantization_config
from llava.model.parts import find_parts
from llava.model.processors import check_pixels
from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.families import model_class
from llava.model.silence import silence
from llava.utils import pick_device, pick_dtype


@dataclass(frozen=True)
class Checked:
    """A model and a config that fit each other.

    `source`: where config.json is (of a plain PEFT folder, in its base model); `base`: the base model of a projector or
    LoRA; `config`: with nothing left open; `filled_in`: the settings that were open and what they are now; `settings`:
    what answers depend on of all this, as run files hold it; `visual_schedule`: what the checkpoint was trained with.
    """

    source: checkpoint.Source
    base: checkpoint.Source | None
    layout: Layout
    config: PruningConfig | None
    filled_in: dict[str, Any]
    device: torch.device
    dtype: torch.dtype
    settings: dict[str, Any]
    visual_schedule: dict[str, Any] | None


def check_model(options: ModelOptions, config: PruningConfig | None) -> Checked:
    """Check a model and a config (None: dense) without reading weights.

    Raises `ValueError`, one line, for a model that is not there or of an unknown layout, a device or dtype that cannot
    be used, options that the model's family does not have, a missing bitsandbytes, and as `resolve` does.
    """
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    quantization_config(options.load_8bit, options.load_4bit)
    base = options.model_base and os.path.expanduser(options.model_base)
    parts = find_parts(os.path.expanduser(options.model_path), base, {})
    checkpoint.check_has_weights(parts.weights)
    layout = read_layout(parts.config.folder)
    layout.check_conv_mode(options.conv_mode)
    check_pixels(layout.model_type, options.min_pixels, options.max_pixels)
    config, filled_in = resolve(config, parts.config, layout)
    settings: dict[str, Any] = {
        "model": (parts.added or parts.config).identity(),
        "model_base": parts.base and parts.base.identity(),
        "pruning_config": config and config.to_dict(),
        "conv_mode": options.conv_mode or layout.conv_mode or (DEFAULT_CONV_MODE if layout.has_conversations else None),
        "dtype": str(dtype).removeprefix("torch."),
    }
    # named only where they differ from how models have always run, so that earlier run files stay valid
    settings |= {"bits": 8} if options.load_8bit else {"bits": 4} if options.load_4bit else {}
    settings |= {key: value for key in ("min_pixels", "max_pixels") if (value := getattr(options, key)) is not None}
    schedule = read_json(parts.config.folder / "config.json").get("visual_schedule")
    return Checked(parts.config, parts.base, layout, config, filled_in, device, dtype, settings, schedule)


PAPER_7B = {"mode": ["shallow", "middle", "deep"], "layer_threshold": 0.995, "tokens_threshold": 0.2}
"""The paper's settings of LLaVA-1.5-7B; layer boundaries that are left open scale with the depth of the model."""


def default_config(folder: Path) -> PruningConfig:
    """Return the config that a checkpoint was trained with, else its `pruning.json`, else the paper's of LLaVA-1.5-7B.

    Raises `ValueError` as `PruningConfig.from_json` does.
    """
    beside = folder / "pruning.json"
    given = PruningConfig.from_json(beside) if beside.is_file() else PruningConfig.from_dict(PAPER_7B)
    return (trained_config(folder) if (folder / "config.json").is_file() else None) or given


def trained_config(folder: Path) -> PruningConfig | None:
    """Return the config that a checkpoint was trained with, `visual_schedule` in its config.json; None without one.

    Raises `ValueError` for HiDrop's own checkpoints, which do not say, and as `PruningConfig.from_dict` does.
    """
    raw = read_json(folder / "config.json")
    if raw.get("visual_schedule") is not None:
        try:
            return PruningConfig.of(raw["visual_schedule"])
        except ValueError as error:
            raise ValueError(f"visual_schedule in {folder / 'config.json'}: {error}") from None
    if raw.get("model_type") == HIDROP:
        raise ValueError(
            f"{folder} was trained with HiDrop and does not say its schedule: give it as --pruning-config "
            "(docs/methods.md) or as visual_schedule in its config.json; --pruning-config none runs it dense"
        )
    return None


def config_of(options: ModelOptions) -> PruningConfig | None:
    """Return the config of --pruning-config; without one, what the checkpoint was trained with; None: dense, as "none".

    Raises `ValueError` as `PruningConfig.of` and `trained_config` do; a missing model is left to `check_model`.
    """
    given = options.pruning_config
    if given is not None:
        return None if given.strip() == "none" else PruningConfig.of(given)
    try:
        base = options.model_base and os.path.expanduser(options.model_base)
        folder = find_parts(os.path.expanduser(options.model_path), base, {}).config.folder
        read_layout(folder)
    except ValueError:
        return None
    return trained_config(folder)


def resolve(
    config: PruningConfig | None, source: checkpoint.Source, layout: Layout | None = None
) -> tuple[PruningConfig | None, dict[str, Any]]:
    """Fit a config to a checkpoint; return it and the settings that were open and are filled in now.

    Raises `ValueError` for a layer boundary that the decoder does not have, and for what the model's family cannot do
    (image encoders that a method cannot read, positions that cannot be renumbered).
    """
    layout = read_layout(source.folder) if layout is None else layout
    if config is None:
        return None, {}
    config.check_layers(layout.layers)
    if any(stage.reads_vision or stage.positions == "compact" for stage in config.stages):
        prune(skeleton(source, layout), config)  # a session checks all that there is to check when it is made
    return config.resolved(layout.layers), config.filled_in(layout.layers)


def skeleton(source: checkpoint.Source, layout: Layout) -> PreTrainedModel:
    """Return the checkpoint's model without its weights (on the meta device), perhaps with a tied head that is not."""
    with torch.device("meta"), silence():
        if layout.kind == "llava":
            config = read_config(source.folder)
            tower = checkpoint.find_source(config.mm_vision_tower, "mm_vision_tower", {}, beside=source.folder)
            return LlavaLlamaForCausalLM(config, read_vision_config(tower.folder, config))
        if layout.kind == "internvl":
            # imported here because only this layout needs it
            from llava.model.internvl import model as internvl

            config = internvl.read_config(source.folder, read_json(source.folder / "config.json"))
            return transformers.InternVLForConditionalGeneration(config)
        config = read_transformers_config(source.folder)
        return model_class(config.model_type)(config)
