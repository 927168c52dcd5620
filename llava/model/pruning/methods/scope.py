"""SCOPE (arXiv 2510.24214): before the decoder, salient visual tokens that cover what is not covered yet.

One token after the other is chosen: the one with the highest gain in coverage times attention to the power `alpha`.
Coverage is Σ_i max_j cos(i, j) over the chosen j, at least 0, with cosines of the encoder's features; attention is the
class token's (heads summed) in the layer whose output is projected.

The original code (kinredon/SCOPE) reads the second last layer whatever is projected, replaces methods of CLIP's classes
for the whole process and has `alpha` and the way of combining (a product, as here, or a sum) in environment variables;
it divides the number of tokens by the number of images, computes in the tower's half precision (here fp32) and closes
up positions (here they stay).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from ..method import AtLeast
from ..vision import SeenImage
from .by_encoder import ByEncoder, chosen


@dataclass(frozen=True)
class SCOPE(ByEncoder, name="scope"):
    """Keep the visual tokens of every image that cover it best, before the decoder.

    alpha:
        power of the attention; 0: coverage alone
    """

    alpha: Annotated[float, AtLeast(0)] = 1.0

    cosines = "features"

    def choose(self, image: SeenImage, count: int) -> np.ndarray:
        """Return a greedy choice by gain."""
        weight, cosines = image.readings[0] ** self.alpha, image.cosines
        covered, taken = np.zeros(len(weight), np.float32), np.zeros(len(weight), bool)
        for _ in range(min(count, len(weight))):
            gain = np.maximum(cosines - covered[:, None], 0).sum(0) * weight
            best = int(np.where(taken, -np.inf, gain).argmax())
            taken[best] = True
            np.maximum(covered, cosines[:, best], out=covered)
        return chosen(len(weight), taken)
