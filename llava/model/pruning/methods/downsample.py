"""The control that beats many methods: make the picture smaller, so that it has as many visual tokens.

Each image's pixels are resized (bicubic, antialiased) and encoded again by the tower and the projector, at a size that
gives rows × columns visual tokens, at most the number asked for; a CLIP or SigLIP tower interpolates its position
embeddings. A token has the position of the middle of its part of the picture.

VTC-Bench (arXiv 2510.07143) found that this beats many pruning methods, and scores methods on the questions that it
fails. It resizes before the processor; here the processor's picture is resized, so that every command and config can
run it, and the picture is encoded twice (times of the encoder do not compare; those of the decoder do). With
`"positions": "compact"` the prompt is that of a smaller picture; M-RoPE keeps the large picture's positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from ..method import PromptState, Selection
from ..vision import EncoderReading, SeenImage
from .by_encoder import ByEncoder, chosen, divided
from .ranking import kept_count


@dataclass(frozen=True)
class Downsample(ByEncoder, name="downsample"):
    """Encode every image at a smaller size, before the decoder.

    positions:
        `original`, or `compact`
    """

    positions: Literal["original", "compact"] = "original"

    reads_vision: ClassVar = (EncoderReading("pixels"),)
    encoder_needs = ("shrink",)

    def select(self, layer: int, prompt: PromptState, measured: list[SeenImage] | None) -> Selection | None:
        if measured is None:
            return None
        grids = [image.states.grid for image in measured]
        counts = divided(max(kept_count(self, prompt), 1), [rows * columns for rows, columns in grids])
        if all(count >= rows * columns for count, (rows, columns) in zip(counts, grids, strict=True)):
            return None
        sizes = [smaller(grid, count) for grid, count in zip(grids, counts, strict=True)]
        keeps = [
            chosen(rows * columns, middles((rows, columns), size))
            for (rows, columns), size in zip(grids, sizes, strict=True)
        ]

        def rewrite(visual: torch.Tensor) -> torch.Tensor:
            """[V, D] → [kept, D]: the visual tokens of the smaller pictures."""
            small = [image.states.shrink(size) for image, size in zip(measured, sizes, strict=True)]
            return torch.cat([tokens.to(visual) for tokens in small])

        return Selection(np.concatenate(keeps), rewrite)


def smaller(grid: tuple[int, int], count: int) -> tuple[int, int]:
    """Return rows and columns of at most `count` tokens, in about the proportions of `grid`."""
    rows, columns = grid
    fewer = min(rows, max(1, int((count * rows / columns) ** 0.5 + 1e-9)))
    return fewer, min(columns, max(1, count // fewer))


def middles(grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return the places in `grid` of the middles of `size` equal parts, row after row: int [rows · columns]."""
    down, across = ((2 * np.arange(few) + 1) * many // (2 * few) for few, many in zip(size, grid, strict=True))
    return (down[:, None] * grid[1] + across).ravel()
