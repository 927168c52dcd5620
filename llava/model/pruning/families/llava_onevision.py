"""LLaVA-OneVision: AnyRes tiles with image newlines as in LLaVA-NeXT, several images, and video frames."""

from __future__ import annotations

from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration

from .placeholders import Placeholders


class LlavaOnevision(Placeholders):
    """`llava-hf/llava-onevision-*-hf`, a Qwen2 decoder; image and video placeholders are visual, newlines too."""

    models = "LlavaOnevisionForConditionalGeneration"
    placeholders = ("image_token_id", "video_token_id")

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        """Whether `model` is transformers' LLaVA-OneVision."""
        return isinstance(model, LlavaOnevisionForConditionalGeneration)
