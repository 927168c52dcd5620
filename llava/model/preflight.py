"""Whether a model can run a pruning config, told from its configuration files before any weight is read."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from llava.model import checkpoint
from llava.model.language_model.configuration_llava import read_config, read_json, read_vision_config
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.layouts import TRANSFORMERS, Layout, read_layout, read_transformers_config
from llava.model.pruning import PruningConfig, prune
from llava.model.silence import silence


def resolve(
    config: PruningConfig | None, source: checkpoint.Source, layout: Layout | None = None
) -> tuple[PruningConfig | None, dict[str, Any]]:
    """Fit a config to a checkpoint; return it and the settings that were open and are filled in now.

    Raises `ValueError` for a layer boundary that the decoder does not have, and for what the model's family cannot do
    (image encoders that a method cannot read, positions that cannot be counted anew).
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
            from llava.model import internvl_original

            config = internvl_original.read_config(source.folder, read_json(source.folder / "config.json"))
            return transformers.InternVLForConditionalGeneration(config)
        config = read_transformers_config(source.folder)
        return getattr(transformers, TRANSFORMERS[config.model_type])(config)
