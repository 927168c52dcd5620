"""LLaVA-OneVision: AnyRes tiles with image newlines as in LLaVA-NeXT, several images, and video frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ..grid import box, runs_of
from .placeholders import Placeholders, media_of


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
        pixels, encoded = media_of(inputs, kind)
        shape = (encoded.pooler_output if pixels is None else pixels).shape
        if pixels is None and len(shape) == 3 and shape[0] == 1:  # of any number of videos, one after the other
            there = inputs["input_ids"].cpu().numpy() == model.config.video_token_id
            frames = [(len(run) - 1) // side**2 for run in runs_of(there)]
        else:
            frames = [(shape[1] - 1) // side**2 if pixels is None else shape[1]] * shape[0]
        return [np.concatenate([box(count, side, side), [[-1, -1, -1]]]) for count in frames]
