"""Qwen2-VL and Qwen2.5-VL: images and video frames of any size, three-row M-RoPE positions (arXiv 2409.12191)."""

from __future__ import annotations

import torch

from .placeholders import Placeholders


class Qwen2VL(Placeholders):
    """Image and video placeholders are visual; the vision start and end tokens around them are text."""

    model_types = {"qwen2_vl": "Qwen2VLForConditionalGeneration", "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration"}
    token_grid = "grid"

    def positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Return [3, B, T], time, height and width.

        `generate` puts a row of text positions before them, which only attention masks read; text alone has one row.
        """
        rows = position_ids if position_ids.ndim == 3 else position_ids[None]
        return rows[-3:].expand(3, *rows.shape[1:])
