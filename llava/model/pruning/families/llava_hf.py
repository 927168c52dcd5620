"""LLaVA-1.5 as transformers' `LlavaForConditionalGeneration`: visual tokens are the image placeholders."""

from __future__ import annotations

from torch import nn
from transformers import LlavaForConditionalGeneration

from .base import Family


class LlavaHF(Family):
    """`llava-hf/llava-1.5-*-hf`."""

    models = "LlavaForConditionalGeneration"

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        """Whether `model` is transformers' LLaVA."""
        return isinstance(model, LlavaForConditionalGeneration)

    def decoder(self, model: nn.Module) -> nn.Module:
        """Return the text model."""
        return model.model.language_model

    def entry(self, model: nn.Module) -> nn.Module:
        """Return `LlavaModel`, which sees the token ids."""
        return model.model

    def visual_mask(self, model: nn.Module, inputs):
        """Image placeholders are visual."""
        ids = inputs.get("input_ids")
        return None if ids is None else ids == model.config.image_token_id
