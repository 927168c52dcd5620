"""DyCoke (arXiv 2411.15024): before the decoder, thin out frames that resemble the one or the two before them.

Frames are taken four at a time. The first stays whole. The second and fourth keep the tokens that are least like (in
cosine) the same place of the frame before them, the third those least like the first frame's: of each ⌊(1 − `merge`) P⌋
of P tokens. The question plays no part, and an image, which is a first frame, stays whole. This is the paper's temporal
merging; its second part, which drops visual keys anew at every decoding step, is not offered.

The original code (KD-TAO/DyCoke) hands on the tokens that stay in the order of their similarity (here in their own),
renumbers positions from 0 (`"positions": "compact"`; here they stay, which is the default), and computes in half
precision (here fp32). It leaves the third frame of the last four whole, so that up to four frames keep theirs, fails
with fewer than five frames, and loses the last frame of an odd number; here all are thinned out alike and none is lost.
Its keys give `merge` as 0.3, the paper as 0.7, which is the default here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..method import Method, PromptState, Share, strongest
from ..probes import Probe
from .frames import Repetition, clips_of, earlier

BACK = np.array([0, 1, 2, 1])
"""For each frame of a window, how far back the frame is that it is compared with; 0: it stays whole."""


@dataclass(frozen=True)
class DyCoke(Method, name="dycoke"):
    """Of three frames in four, drop the visual tokens that repeat an earlier frame, before the decoder.

    merge:
        share of the tokens of such a frame that is dropped
    positions:
        `original`, or `compact` as in the original code
    """

    merge: Share = 0.7
    positions: Literal["original", "compact"] = "original"

    before_decoder = True
    reads_frames = True

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        return Repetition(earlier(prompt, lambda frames: BACK[frames % 4])) if layer < 0 else None

    def select(self, layer: int, prompt: PromptState, measured: np.ndarray | None) -> np.ndarray | None:
        if measured is None:
            return None
        kept = np.ones(len(measured), bool)
        for clip in clips_of(prompt):
            for frame in clip:
                if BACK[prompt.frames[frame.start] % 4]:
                    kept[frame] = strongest(-measured[frame], int((1 - self.merge) * (frame.stop - frame.start)))
        return kept

    @classmethod
    def schedules(cls, num_layers: int) -> list[Method]:
        """The one there is."""
        return [cls(merge=0.0)]

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        return replace(self, merge=1 - share)
