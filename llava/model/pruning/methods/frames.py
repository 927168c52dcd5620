"""What methods for video share: visual tokens by image or video and frame, and their places in earlier frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..method import Method, PromptState
from ..packed import upload
from ..probes import LayerStates, Probe

Clip = list[slice]
"""One image or video: for each of its frames, where its tokens are among the prompt's visual tokens."""


def clips_of(prompt: PromptState) -> list[Clip]:
    """Return the images (one frame each) and videos of a prompt; tokens of no frame are in none of them."""
    shown = np.flatnonzero(prompt.frames >= 0)
    keys = np.stack([prompt.media, prompt.frames], 1)[shown]
    starts = np.flatnonzero(np.any(np.diff(keys, axis=0, prepend=-1), 1))
    clips: dict[int, Clip] = {}
    for start, end in zip(starts, [*starts[1:], len(shown)], strict=True):
        clips.setdefault(int(keys[start, 0]), []).append(slice(int(shown[start]), int(shown[end - 1]) + 1))
    return list(clips.values())


def earlier(prompt: PromptState, back: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the token at the same place of an earlier frame, `back(frame)` before: int [V], −1 where there is none.

    Of a `back` of 0 there is none either.
    """
    frames, (rows, columns) = prompt.frames, prompt.cells.T
    steps = np.where(frames >= 0, back(frames), 0)
    sizes = (prompt.media.max(initial=0) + 1, frames.max(initial=0) + 1, rows.max(initial=0) + 2)

    def keys(of: np.ndarray) -> np.ndarray:
        frame = (prompt.media * sizes[1] + of) * sizes[2] + rows + 1
        return frame * (columns.max(initial=0) + 2) + columns + 1

    own = np.where(frames >= 0, keys(frames), -1)
    order = np.argsort(own, kind="stable")
    found = order[np.minimum(np.searchsorted(own, keys(frames - steps), sorter=order), len(own) - 1)]
    there = (steps > 0) & (steps <= frames) & (own[found] == keys(frames - steps))
    return np.where(there, found, -1)


@dataclass(frozen=True, eq=False)
class Repetition(Probe):
    """Cosine of each visual token's embedding with that of token number `before` (int [V]), fp32 [V]; −1 for none."""

    before: np.ndarray

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return [V] of the prompt."""
        (hidden,) = (states.tokens.visual_hidden(b).float() for b in prompts)
        before = upload(self.before, hidden.device)
        cosine = torch.cosine_similarity(hidden, hidden.index_select(0, before.clamp_min(0)), dim=-1)
        return [cosine.where(before >= 0, -1.0)]


def share_of(method: Method, prompt: PromptState) -> float:
    """Return the share of the prompt's visual tokens that `method.keep` or `method.share` leaves, at most 1."""
    return method.share if method.keep is None else min(1.0, method.keep / len(prompt.positions))
