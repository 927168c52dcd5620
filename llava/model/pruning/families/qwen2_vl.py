"""Qwen2-VL and Qwen2.5-VL: images and video frames of any size, three-row M-RoPE positions (arXiv 2409.12191)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from transformers.vision_utils import get_vision_window_index

from ..vision import EncodedImages, Encoder
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

    def encoder(self, model: nn.Module) -> Encoder:
        """Return the tower's last block; a visual token is made of neighbouring patches, and windows reorder tokens."""
        visual = model.model.visual
        return Encoder(visual.blocks, len(visual.blocks) - 1, visual, False, partial(_merged, visual), patchwise=False)


def _merged(visual: nn.Module, arguments: dict, output) -> EncodedImages:
    """Read the tower's output: visual tokens of all images, each merged from a square of patches."""
    grids, merge = arguments["grid_thw"], visual.spatial_merge_size
    tokens = output.pooler_output
    patches = torch.arange(len(tokens) * merge**2, device=tokens.device).view(len(tokens), -1)
    if hasattr(visual, "window_size"):
        order, _ = get_vision_window_index(grids, merge, visual.window_size, visual.patch_size)
        patches = patches[order.to(tokens.device).argsort()]
    sizes = [(frames * height // merge, width // merge) for frames, height, width in grids.tolist()]
    return EncodedImages(tokens.split([rows * columns for rows, columns in sizes]), sizes, patches)
