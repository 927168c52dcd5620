"""Video-LLaVA: 256 tokens per image, 257 per frame with its class token (arXiv 2311.10122)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ..grid import box
from .placeholders import Placeholders


class VideoLlava(Placeholders):
    """`LanguageBind/Video-LLaVA-7B-hf`, a Llama decoder; images and videos have towers of their own."""

    model_types = {"video_llava": "VideoLlavaForConditionalGeneration"}

    def cells(self, model: nn.Module, inputs: dict[str, Any], kind: str) -> list[np.ndarray] | None:
        """Lay out a video's frames, each with its class token, which has no row, before its patches."""
        if kind == "image":
            return None
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        frame = np.concatenate([[[-1, -1]], box(1, side, side)[:, 1:]])
        return self.videos_of(model, inputs | {"mm_encoder_outputs": None}, frame)  # its features are one per frame
