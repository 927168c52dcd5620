"""Image regions of visual tokens: rectangular token grids over the picture, for every family that loads.

Square grids (LLaVA-1.5, MobileVLM-V2), grids of any shape (Qwen2-VL, Qwen2.5-VL), tiles with a thumbnail (InternVL),
and a thumbnail with unpadded tiles and a newline token after each row (LLaVA-1.6, either layout, and OneVision).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava.model.anyres import select_best_resolution, unpad_image
from llava.model.inputs import ImageFeatures, Inputs
from llava.model.inputs.llava_hf import LlavaHFInputs
from llava.model.pruning.families import family_of

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Panel:
    """A rectangle of visual tokens over one picture.

    cells:
        int [rows, columns], which of the prompt's visual tokens shows this cell, counted from 0
    box:
        left, top, right, bottom in shares of the picture's width and height; beyond 0 and 1 where it was padded
    image:
        number of the picture in the prompt
    thumbnail:
        whether other panels show the same picture more closely
    """

    cells: np.ndarray
    box: Box
    image: int = 0
    thumbnail: bool = False

    def boxes(self) -> dict[int, Box]:
        """Return the box of every cell by the number of its visual token."""
        left, top, right, bottom = self.box
        rows, columns = self.cells.shape
        height, width = (bottom - top) / rows, (right - left) / columns
        return {
            int(token): (left + x * width, top + y * height, left + (x + 1) * width, top + (y + 1) * height)
            for (y, x), token in np.ndenumerate(self.cells)
        }


@dataclass(frozen=True, eq=False)
class View:
    """A prompt's original pictures and the panels of visual tokens over them."""

    pictures: tuple[Image.Image, ...]
    panels: tuple[Panel, ...]

    def of(self, image: int, thumbnails: bool = False) -> list[Panel]:
        """Return the panels of one picture: those that show it closest, or its thumbnails.

        Raises `ValueError` where there are none.
        """
        found = [panel for panel in self.panels if (panel.image, panel.thumbnail) == (image, thumbnails)]
        if not found:
            what = "thumbnail" if thumbnails else "panel"
            raise ValueError(f"the prompt has no {what} of picture {image}; it has {len(self.pictures)} pictures")
        return found


def view_of(
    model: torch.nn.Module, inputs: Inputs, pictures: Sequence[Image.Image], seen: Sequence[ImageFeatures]
) -> View:
    """Lay the visual tokens of a prompt over its pictures, encoded by `inputs`, in the prompt's order.

    Raises:
        ValueError: a family without `token_grid`, or a number of visual tokens that its grid does not explain.

    """
    grids = _GRIDS.get(family_of(model).token_grid)
    if grids is None:
        raise ValueError(
            f"how visual tokens of {type(model).__name__} lie over a picture is not known; its family's page would say "
            f"it in `token_grid` ({', '.join(_GRIDS)})"
        )
    panels: list[Panel] = []
    start = 0
    for number, (picture, image) in enumerate(zip(pictures, seen, strict=True)):
        for cells, box, thumbnail in grids(model, inputs, picture.size, image):
            panels.append(Panel(cells + start, box, number, thumbnail))
        start += image.visual
    return View(tuple(pictures), tuple(panels))


Grids = list[tuple[np.ndarray, Box, bool]]
"""(cells, box, whether it is a thumbnail), as in `Panel`."""


def _square(model: Any, inputs: Inputs, size: tuple[int, int], seen: ImageFeatures) -> Grids:
    """One grid over a square: the padded picture, or what a centre crop leaves of it; LLaVA-1.6 has tiles."""
    if getattr(model.config, "image_aspect_ratio", None) == "anyres":
        return _anyres(model, inputs, size, seen)
    rows, columns = seen.grid or _side(seen.visual)
    padded = isinstance(inputs, LlavaHFInputs) or getattr(model.config, "image_aspect_ratio", None) == "pad"
    side = max(size) if padded else min(size)
    x, y = (side / length / 2 for length in size)
    return [(_grid(rows, columns), (0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y), False)]


def _one_grid(model: Any, inputs: Inputs, size: tuple[int, int], seen: ImageFeatures) -> Grids:
    """The picture, stretched to one grid; Qwen2-VL and its kin: to whole patches, merged per token."""
    arrays = seen.content.picture.arrays
    if "image_grid_thw" not in arrays:
        return [(_grid(*(seen.grid or _side(seen.visual))), WHOLE, False)]
    _, height, width = arrays["image_grid_thw"][0].tolist()
    merges = arrays.get("image_merge_sizes")
    merge = model.config.vision_config.spatial_merge_size if merges is None else int(merges[0])
    return [(_grid(height // merge, width // merge), WHOLE, False)]


def _tiles(model: Any, inputs: Inputs, size: tuple[int, int], seen: ImageFeatures) -> Grids:
    """InternVL: the picture stretched to c × r tiles, row by row, and a thumbnail after them.

    c and r follow from the number of tiles: those nearest to the picture's shape.
    """
    vision, ratio = model.config.vision_config, model.config.downsample_ratio
    length = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    side = int(length // patch * ratio)
    tiles = seen.visual // side**2
    if tiles < 2:
        return [(_grid(side, side), WHOLE, False)]
    thumbnail = getattr(inputs.processor.image_processor, "use_thumbnail", True)
    tiles -= thumbnail
    wanted = size[0] / size[1]
    columns = min((c for c in range(1, tiles + 1) if tiles % c == 0), key=lambda c: abs(wanted - c * c / tiles))
    rows = tiles // columns
    grids: Grids = []
    for number in range(tiles):
        row, column = divmod(number, columns)
        box = (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        grids.append((_grid(side, side, number * side**2), box, False))
    return [*grids, (_grid(side, side, tiles * side**2), WHOLE, True)] if thumbnail else grids


def _anyres(model: Any, inputs: Inputs, size: tuple[int, int], seen: ImageFeatures) -> Grids:
    """LLaVA-1.6 and OneVision: a thumbnail, then the tiles as one grid without the parts that only show padding."""
    config, pinpoints = model.config, model.config.image_grid_pinpoints
    if config.model_type == "llava_llama":
        vision = model.get_vision_tower().config
    else:
        vision, pinpoints = config.vision_config, [(width, height) for height, width in pinpoints]
    patch, side = vision.patch_size, vision.image_size // vision.patch_size
    canvas = np.array(select_best_resolution(size, pinpoints))  # pixels: columns, rows of tiles
    columns, rows = canvas // vision.image_size * side
    left = unpad_image(torch.arange(rows * columns).view(1, rows, columns), size)[0]
    top, first = divmod(int(left[0, 0]), int(columns))
    scale = min(canvas / size)
    padding = (canvas / scale - size) / 2  # in the picture's pixels, as are the corners
    corner = np.array([first, top]) * patch / scale - padding
    opposite = corner + np.array(left.shape[::-1]) * patch / scale
    numbers = side**2 + np.arange(left.shape[0] * (left.shape[1] + 1)).reshape(left.shape[0], -1)
    if numbers[-1, -1] + 1 != seen.visual:
        raise ValueError(f"the image has {seen.visual} visual tokens, its grid has {numbers[-1, -1] + 1}")
    box = tuple(float(share) for share in (*corner / size, *opposite / size))
    return [(_grid(side, side), WHOLE, True), (numbers[:, :-1], box, False)]


_GRIDS = {"square": _square, "grid": _one_grid, "tiles": _tiles, "anyres": _anyres}


def _grid(rows: int, columns: int, start: int = 0) -> np.ndarray:
    return start + np.arange(rows * columns).reshape(rows, columns)


def _side(count: int) -> tuple[int, int]:
    side = round(count**0.5)
    if side * side != count:
        raise ValueError(f"the image has {count} visual tokens, which are no square grid")
    return side, side
