"""VideoLLaMA3: images and frames of any size; tokens of frames that hardly change are left out (arXiv 2501.13106)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ..grid import box
from .placeholders import Placeholders


class VideoLlama3(Placeholders):
    """`lkhl/VideoLLaMA3-*-HF`, a Qwen2 decoder; time stamps and commas between frames are text.

    The frames' unchanged tokens never reach the prompt (`video_compression_mask`); pruning counts what is left.
    """

    model_types = {"video_llama_3": "VideoLlama3ForConditionalGeneration"}
    token_grid = "grid"

    def cells(self, model: nn.Module, inputs: dict[str, Any], kind: str) -> list[np.ndarray] | None:
        """Read each image's or video's patches, merged as it says itself; of a video those that were not left out."""
        grids, merges = inputs.get(f"{kind}_grid_thw"), inputs.get(f"{kind}_merge_sizes")
        if grids is None or merges is None:
            return None
        sizes = zip(grids.tolist(), merges.tolist(), strict=True)
        cells = [box(t, h // merge, w // merge) for (t, h, w), merge in sizes]
        mask = inputs.get(f"{kind}_compression_mask")
        if mask is None:
            return cells
        ends = np.cumsum([len(one) for one in cells])[:-1]
        return [one[kept] for one, kept in zip(cells, np.split(mask.cpu().numpy(), ends), strict=True)]
