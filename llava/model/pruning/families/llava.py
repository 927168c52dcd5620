"""LLaVA in its original layout (`LlavaLlamaForCausalLM`): the model marks its visual tokens while splicing images."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaForCausalLM

from ..vision import Encoder, layer_encoder
from .base import Family


class Llava(Family):
    """LLaVA-1.5 7B and 13B, MobileVLM-V2 3B, and the small model."""

    models = "LlavaLlamaForCausalLM"
    inputs = "conversation"
    token_grid = "square"

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        """Whether `model` is LLaVA as this repository loads it."""
        return isinstance(model, LlamaForCausalLM) and model.config.model_type == "llava_llama"

    def decoder(self, model: nn.Module) -> nn.Module:
        """Return the `LlavaLlamaModel`, which is a `LlamaModel` with a vision tower beside its layers."""
        return model.model

    def prompt_width(self, inputs: torch.Tensor) -> None:
        """Prompts reach the decoder as embeddings, to which `generate` appends nothing."""

    def encoder(self, model: nn.Module) -> Encoder | None:
        """Return the CLIP tower's selected layer and the projector.

        None for a model without a tower, for a projector that mixes patches (MobileVLM's), and for AnyRes (LLaVA-1.6).
        """
        tower, projector = model.model.vision_tower, model.model.mm_projector
        if tower is None or hasattr(projector, "num_tokens") or model.config.image_aspect_ratio == "anyres":
            return None
        return layer_encoder(tower.vision_tower, tower.select_layer, projector, class_token=True, around=tower)
