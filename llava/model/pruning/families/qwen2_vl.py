"""Qwen2-VL and Qwen2.5-VL: images and video frames of any size, three-row M-RoPE positions (arXiv 2409.12191)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from transformers.vision_utils import get_vision_window_index

from ..vision import EncodedImages, Encoder, resized
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
        return Encoder(
            visual.blocks,
            len(visual.blocks) - 1,
            visual,
            False,
            partial(_merged, visual),
            patchwise=False,
            tower=visual,
            pictures=_pictures,
            shrink=partial(_shrink, visual),
        )


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


def _pictures(arguments: dict) -> list[tuple[torch.Tensor, list[int]]]:
    """Split the tower's patches [n, C · t · p · p] into those of each image, with its (frames, rows, columns)."""
    grids = arguments["grid_thw"]
    pixels = arguments["hidden_states"] if "hidden_states" in arguments else arguments["pixel_values"]
    return list(zip(pixels.split(grids.prod(-1).tolist()), grids.tolist(), strict=True))


def _shrink(visual: nn.Module, picture: tuple[torch.Tensor, list[int]], size: tuple[int, int]) -> torch.Tensor:
    """Put an image's patches together, resize every frame, and encode the patches of that."""
    (pixels, (frames, rows, columns)), merge, patch = picture, visual.spatial_merge_size, visual.patch_embed.patch_size
    depth = visual.patch_embed.temporal_patch_size
    blocks = (frames, rows // merge, columns // merge, merge, merge, -1, depth, patch, patch)
    whole = pixels.view(blocks).permute(0, 6, 5, 1, 3, 7, 2, 4, 8).flatten(0, 1)
    whole = whole.reshape(frames * depth, -1, rows * patch, columns * patch)
    per_frame, across = max(1, size[0] // frames), size[1]
    small = resized(whole, (per_frame * merge * patch, across * merge * patch)).to(pixels)
    small = small.view(frames, depth, -1, per_frame, merge, patch, across, merge, patch)
    small = small.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, pixels.shape[1])
    grid = torch.tensor([[frames, per_frame * merge, across * merge]], device=pixels.device)
    return visual(small, grid_thw=grid).pooler_output
