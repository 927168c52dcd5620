"""AnyRes, LLaVA-1.6's images in the original layout: a thumbnail and tiles in, their features one grid with newlines.

Source: LLaVA-NeXT (llava-vl.github.io/blog/2024-01-30-llava-next), `mm_patch_merge_type` "spatial_unpad": the tiles'
features are put together, the rows and columns of the padding are cut off, and each row ends in the learned
`image_newline`. Sizes are (width, height) in pixels, as PIL has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

Size = tuple[int, int]


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Size]) -> Size:
    """Return the resolution that keeps most of an image's pixels; ties: the one with least padding."""
    width, height = original_size

    def fit(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    return tuple(max(possible_resolutions, key=fit))


def process_anyres_image(image: Image.Image, processor: Any, grid_pinpoints: Sequence[Size]) -> torch.Tensor:
    """Cut an RGB image into tiles; return float32 `[1 + tiles, 3, S, S]`, the thumbnail first, tiles row by row."""
    side = processor.crop_size["height"]
    target = select_best_resolution(image.size, grid_pinpoints)
    width, height = image.size
    if target[0] / width < target[1] / height:
        inner = target[0], min(math.ceil(height * target[0] / width), target[1])
    else:
        inner = min(math.ceil(width * target[1] / height), target[0]), target[1]
    padded = Image.new("RGB", target, "black")
    padded.paste(image.resize(inner), ((target[0] - inner[0]) // 2, (target[1] - inner[1]) // 2))
    corners = [(left, top) for top in range(0, target[1], side) for left in range(0, target[0], side)]
    tiles = [padded.crop((left, top, left + side, top + side)) for left, top in corners]
    edge = processor.size["shortest_edge"]
    return processor([image.resize((edge, edge)), *tiles], return_tensors="pt")["pixel_values"]


def merge_tiles(
    features: torch.Tensor, size: Size, pinpoints: Sequence[Size], side: int, newline: torch.Tensor | None
) -> torch.Tensor:
    """Merge the features of one image's tiles: `[1 + tiles, P, D]` → `[V, D]`, the thumbnail's first.

    `size`: of the image before preprocessing; `side`: of a tile in pixels; `newline` `[D]`: ends each row of the grid,
    from which the padding is cut off; None: tiles one after the other ("flat").
    Raises `ValueError` for another number of tiles than an image of this size has.
    """
    columns, rows = (length // side for length in select_best_resolution(size, pinpoints))
    thumbnail, tiles = features[0], features[1:]
    if len(tiles) not in (0, rows * columns):
        raise ValueError(
            f"an image of {size[0]}×{size[1]} pixels came in {len(tiles)} tiles: expected {rows * columns}"
        )
    if newline is None:
        return features.flatten(0, 1)
    newline = newline.to(features)
    if not len(tiles):
        return torch.cat((thumbnail, newline[None]))
    patches = math.isqrt(features.shape[1])
    grid = tiles.unflatten(0, (rows, columns)).unflatten(2, (patches, patches))  # [rows, columns, p, p, D]
    grid = unpad_image(grid.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2), size)  # [D, h, w]
    grid = torch.cat((grid, newline[:, None, None].expand(-1, grid.shape[1], 1)), dim=2)
    return torch.cat((thumbnail, grid.flatten(1).T))


def unpad_image(tensor: torch.Tensor, original_size: Size) -> torch.Tensor:
    """Cut the padding of an image of `original_size` off `[D, h, w]`, the same number of rows or columns at both ends.

    Lengths are rounded as transformers' LLaVA-NeXT does: LLaVA's own `int(...)` loses a row to a float's last bit.
    """
    (width, height), (rows, columns) = original_size, tensor.shape[1:]
    if width / height > columns / rows:
        cut = (rows - int(round(height * columns / width, 7))) // 2
        return tensor[:, cut : rows - cut]
    cut = (columns - int(round(width * rows / height, 7))) // 2
    return tensor[:, :, cut : columns - cut]
