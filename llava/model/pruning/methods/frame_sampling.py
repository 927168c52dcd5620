"""`frames`, the control of methods for video: fewer frames, each whole, at even distances. Not a published method.

What stays is what a smaller --frames would have shown, but for the encoder, which saw all of them: the same tokens as a
method at the same share, and no knowledge of what they show.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from ..method import AtLeast, Method, PromptState, Share
from .frames import clips_of
from .ranking import check_one_of


@dataclass(frozen=True)
class FrameSampling(Method, name="frames"):
    """Keep whole frames of each video at even distances, before the decoder; an image is one frame and stays.

    count, share:
        frames that stay of each video, as a number from 1 or as a share, rounded, at least one
    """

    count: Annotated[int, AtLeast(1)] | None = None
    share: Share | None = None

    before_decoder = True
    reads_frames = True

    def check(self) -> None:
        check_one_of(self, "count", "share")

    def select(self, layer: int, prompt: PromptState, measured: None) -> np.ndarray | None:
        if layer >= 0:
            return None
        kept = prompt.frames < 0
        for clip in clips_of(prompt):
            count = round(self.share * len(clip)) if self.count is None else self.count
            for number in np.linspace(0, len(clip) - 1, min(max(count, 1), len(clip))).round().astype(int):
                kept[clip[number]] = True
        return kept

    @classmethod
    def schedules(cls, num_layers: int) -> list[Method]:
        """The one there is."""
        return [cls(share=1.0)]

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        return replace(self, count=None, share=share)
