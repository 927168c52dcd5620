"""InternVL2.5 and InternVL3: tiles of 256 tokens and a thumbnail, each token an `<IMG_CONTEXT>` placeholder."""

from __future__ import annotations

from torch import nn
from transformers import InternVLForConditionalGeneration

from .placeholders import Placeholders


class InternVL(Placeholders):
    """`-hf` checkpoints; `<img>` and `</img>` around the tiles are text."""

    models = "InternVLForConditionalGeneration"

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        """Whether `model` is transformers' InternVL."""
        return isinstance(model, InternVLForConditionalGeneration)
