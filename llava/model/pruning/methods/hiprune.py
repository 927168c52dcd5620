"""HiPrune (arXiv 2508.00553): before the decoder, tokens of the main object with their neighbours, and global ones.

Anchors have the highest attention in a middle layer of the encoder (mean over heads and rows), a fifth of the share
`alpha` of the kept tokens; with each stay its neighbours left, right, above and below. The other tokens are those with
the highest attention in the layer whose output is projected. The question plays no part, nor does a class token.

The original code (Danielement321/HiPrune) has its numbers in environment variables: layer 9 of 24 for LLaVA-1.5 (the
default here), 16 of 32 for Qwen2.5-VL (`"depth": 0.5`). As there, a neighbour to the left of a row's first token is the
last one of the row above, and beyond the first or last token it is that token. Its grid is 24 wide for LLaVA, and with
few tokens it can ask for a negative number of global ones (here there are fewer anchors). Positions close up for LLaVA
and stay for Qwen2.5-VL (here they stay).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..method import Share, strongest
from ..vision import EncoderReading, SeenImage
from .by_encoder import ByEncoder, chosen


@dataclass(frozen=True)
class HiPrune(ByEncoder, name="hiprune"):
    """Keep anchors, their neighbours and the most attended others of every image, before the decoder.

    alpha:
        share of the kept tokens that are anchors and neighbours
    depth:
        the middle layer that finds anchors, as a share of the encoder's depth
    """

    alpha: Share = 0.1
    depth: Share = 0.375

    @property
    def reads_vision(self) -> tuple[EncoderReading, ...]:
        """Attention in the middle layer, and in the one whose output is projected."""
        return EncoderReading("all", self.depth), EncoderReading("all")

    def choose(self, image: SeenImage, count: int) -> np.ndarray:
        """Return anchors and neighbours, and the most attended tokens beside them."""
        middle, last = image.readings
        anchors = np.flatnonzero(strongest(middle, min(round(count * self.alpha / 5), count // 5)))
        width = image.states.grid[1]
        near = np.concatenate([anchors + step for step in (0, -1, 1, -width, width)]).clip(0, len(last) - 1)
        kept = chosen(len(last), near)
        return kept | strongest(np.where(kept, -np.inf, last), count - int(kept.sum()))
