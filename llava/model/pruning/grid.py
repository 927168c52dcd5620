"""Where visual tokens lie: which image or video of the prompt, which frame of it, which row and column.

A grid is int [..., 4] with one such quadruple per token, each counted from 0; −1 for text and for what is not known.
Families make it from a model's inputs; methods read it in `PromptState`, and traces keep its frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Frame(NamedTuple):
    """An image, or a frame of a video, in a prompt: its visual tokens are `tokens` neighbours from `start` on.

    `medium`: which image or video of the prompt; `number`: the frame in it, 0 for an image; `columns`: of its
    row-major grid, 0 where that is not known.
    """

    medium: int
    number: int
    start: int
    tokens: int
    columns: int


def box(frames: int, rows: int, columns: int) -> np.ndarray:
    """Return (frame, row, column) of every token of a video, frame by frame and row by row: int [V, 3]."""
    return np.stack(np.meshgrid(range(frames), range(rows), range(columns), indexing="ij"), -1).reshape(-1, 3)


def runs_of(there: np.ndarray) -> list[np.ndarray]:
    """Take each run of neighbours in `there` (bool [B, T]) for an image whose grid is not known: int [V, 3] each."""
    padded = np.pad(there, ((0, 0), (1, 1))).astype(int)
    lengths = np.flatnonzero(np.diff(padded) == -1) - np.flatnonzero(np.diff(padded) == 1)
    return [np.tile([0, -1, -1], (length, 1)) for length in lengths]


def grid_of(parts: Sequence[tuple[np.ndarray, Sequence[np.ndarray]]]) -> np.ndarray:
    """Return the grid of a batch, int [B, T, 4].

    Args:
        parts: for images and for videos, where their tokens are (bool [B, T]) and the cells of each, int [V, 3], in
            the batch's order. A video's tokens may have text between them.

    Raises:
        ValueError: cells of another number than the tokens.

    """
    grid = np.full((*parts[0][0].shape, 4), -1)
    media = 0
    for there, cells in parts:
        told = sum(map(len, cells))
        if told != there.sum():
            raise ValueError(f"the inputs explain the places of {told} visual tokens, the prompts have {there.sum()}")
        if told:
            numbers = np.repeat(np.arange(len(cells)) + media, [len(one) for one in cells])
            grid[there] = np.column_stack([numbers, np.concatenate(cells)])
            media += len(cells)
    for row in grid:  # media of a prompt are counted from 0 in the order of the prompt
        visual = row[:, 0] >= 0
        _, first, which = np.unique(row[visual, 0], return_index=True, return_inverse=True)
        row[visual, 0] = np.argsort(np.argsort(first))[which]
    return grid


def frames_of(grid: np.ndarray) -> list[Frame]:
    """Return the images and frames of a prompt's grid [L, 4], in order; tokens of no frame are left out."""
    shown = np.flatnonzero(grid[:, 1] >= 0)
    keys = grid[shown, :2]
    starts = np.flatnonzero(np.any(np.diff(keys, axis=0, prepend=-1), 1))
    counts = np.diff(starts, append=len(shown))
    return [
        Frame(*map(int, keys[i]), int(shown[i]), int(n), int(grid[shown[i : i + n], 3].max() + 1))
        for i, n in zip(starts, counts, strict=True)
    ]
