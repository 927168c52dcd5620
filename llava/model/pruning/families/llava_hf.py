"""LLaVA-1.5 as transformers' `LlavaForConditionalGeneration`: visual tokens are the image placeholders."""

from __future__ import annotations

from torch import nn
from transformers import LlavaForConditionalGeneration

from .placeholders import Placeholders


class LlavaHF(Placeholders):
    """`llava-hf/llava-1.5-*-hf`."""

    models = "LlavaForConditionalGeneration"

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        """Whether `model` is transformers' LLaVA."""
        return isinstance(model, LlavaForConditionalGeneration)
