"""LLaVA-NeXT-Video: images as LLaVA-NeXT's, frames pooled 2×2 (144 tokens of 24×24 patches), no newlines in videos."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ..grid import box
from .placeholders import Placeholders


class LlavaNextVideo(Placeholders):
    """`llava-hf/LLaVA-NeXT-Video-*-hf`, a Llama or Mistral decoder; image and video placeholders are visual."""

    model_types = {"llava_next_video": "LlavaNextVideoForConditionalGeneration"}
    token_grid = "anyres"

    def cells(self, model: nn.Module, inputs: dict[str, Any], kind: str) -> list[np.ndarray] | None:
        """Lay out a video's frames, pooled by `spatial_pool_stride`."""
        if kind == "image":
            return None
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size // model.config.spatial_pool_stride
        return self.videos_of(model, inputs, box(1, side, side)[:, 1:])
