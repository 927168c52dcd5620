"""LLaVA-OneVision: AnyRes tiles with image newlines as in LLaVA-NeXT, several images, and video frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ..grid import box
from .placeholders import Placeholders


class LlavaOnevision(Placeholders):
    """`llava-hf/llava-onevision-*-hf`, a Qwen2 decoder; image and video placeholders are visual, newlines too."""

    model_types = {"llava_onevision": "LlavaOnevisionForConditionalGeneration"}
    token_grid = "anyres"

    def cells(self, model: nn.Module, inputs: dict[str, Any], kind: str) -> list[np.ndarray] | None:
        """Lay out a video's frames, pooled to half of the tower's rows and columns, and the newline after them."""
        if kind == "image":
            return None
        vision = model.config.vision_config
        side = -(-(vision.image_size // vision.patch_size) // 2)
        return self.videos_of(model, inputs, box(1, side, side)[:, 1:], after=1)
