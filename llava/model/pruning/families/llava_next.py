"""LLaVA-NeXT (v1.6): the thumbnail, the AnyRes tiles and the image newlines between their rows are all visual."""

from __future__ import annotations

from torch import nn
from transformers import LlavaNextForConditionalGeneration

from .placeholders import Placeholders


class LlavaNext(Placeholders):
    """`llava-hf/llava-v1.6-*-hf`; its processor writes placeholders for newlines as for patches."""

    models = "LlavaNextForConditionalGeneration"

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        """Whether `model` is transformers' LLaVA-NeXT."""
        return isinstance(model, LlavaNextForConditionalGeneration)
