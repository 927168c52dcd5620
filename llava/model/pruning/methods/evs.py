"""EVS (arXiv 2510.14624): before the decoder, drop video tokens that look like the same place one frame earlier.

A token's score is 1 − cos between its embedding and that of its place in the frame before. Tokens without one, those of
the first frame, stay; of each video the share with the highest scores stays (the earlier token where two are equal), at
least the first frame.
The question plays no part, and an image, which is a first frame, stays whole.

The original code (vLLM's `evs.py`, NVIDIA's) does the same per video on Qwen2.5-VL's merged patches, in the model's
precision (here fp32), and on a video as its processor cut it, whose token then covers two frames. It computes the
positions of the text after a video anew; they come out as they were, which is how they are here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..method import Count, PromptState, Share, strongest
from ..probes import Probe
from .frames import Repetition, clips_of, earlier, share_of
from .ranking import BeforeDecoder


@dataclass(frozen=True)
class EVS(BeforeDecoder, name="evs"):
    """Keep the visual tokens that changed most since the frame before, before the decoder.

    keep, share:
        visual tokens that stay, as a number or as a share of each video's; its first frame always stays
    """

    keep: Count | None = None
    share: Share | None = None

    reads_frames = True

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        return Repetition(earlier(prompt, np.ones_like)) if layer < 0 else None

    def select(self, layer: int, prompt: PromptState, measured: np.ndarray | None) -> np.ndarray | None:
        if measured is None:
            return None
        first = earlier(prompt, np.ones_like) < 0
        changed = np.where(first, np.inf, 1 - measured)
        kept, share = np.ones(len(measured), bool), share_of(self, prompt)
        for clip in clips_of(prompt):
            tokens = slice(clip[0].start, clip[-1].stop)
            kept[tokens] = strongest(changed[tokens], max(int(first[tokens].sum()), int(share * len(first[tokens]))))
        return kept
