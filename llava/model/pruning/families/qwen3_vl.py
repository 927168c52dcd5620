"""Qwen3-VL and its mixture of experts: as Qwen2.5-VL, with DeepStack (arXiv 2406.04334) and interleaved M-RoPE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..vision import Encoder
from .qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    """The encoder's earlier layers make further features, which the decoder's first layers add at visual tokens."""

    model_types = {"qwen3_vl": "Qwen3VLForConditionalGeneration", "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration"}
    model_types |= {"cosmos3_omni": "Cosmos3OmniForConditionalGeneration"}

    def encoder(self, model: nn.Module) -> Encoder:
        """Return Qwen2-VL's, without smaller pictures: their DeepStack features would be those of the whole one."""
        return replace(super().encoder(model), shrink=None)

    def added(self, given: dict[str, Any], embeds: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return the features of each layer at their places, zero elsewhere."""
        places, features = given.pop("visual_pos_masks", None), given.pop("deepstack_visual_embeds", None)
        if features is None:
            return {}
        places, nothing = places.to(embeds.device)[..., None], torch.zeros_like(embeds)
        return {layer: nothing.masked_scatter(places, part.to(embeds)) for layer, part in enumerate(features)}
