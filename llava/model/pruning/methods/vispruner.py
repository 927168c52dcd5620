"""VisPruner (arXiv 2412.01818): before the decoder, attended visual tokens and, of the rest, those unlike each other.

Of `keep` tokens the share `important` has the highest attention from the class token in the encoder layer whose output
is projected (heads averaged). The others come from the rest, which is thinned until enough are left: in the order of
their attention they are split into every other one, A and B; the `STEP` of A with the most similar token in B (cosine
of the encoder's features) go, and A's survivors, the most similar first, come before B in the next round.

The original code (Theia-4869/VisPruner) fails where an odd number of tokens is split (here A is the longer half). For
SigLIP, without a class token, it takes the mean attention of all rows, in the last layer whatever is projected (here:
in the projected one). It computes the cosines in the tower's half precision (here fp32), knows one image of LLaVA-1.5,
and closes up the positions behind the kept tokens (here positions stay).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..method import Share
from ..vision import SeenImage
from .by_encoder import ByEncoder, chosen

STEP = 8
"""Tokens that leave in one round, at most."""


@dataclass(frozen=True)
class VisPruner(ByEncoder, name="vispruner"):
    """Keep important and diverse visual tokens of every image, before the decoder.

    Important:
        share of the kept tokens that attention chooses

    """

    important: Share = 0.5

    cosines = "features"

    def choose(self, image: SeenImage, count: int) -> np.ndarray:
        """Return the most attended tokens, and of the others those that similar ones leave."""
        order = np.argsort(-image.readings[0], kind="stable")
        first = int(count * self.important)
        diverse = unlike(order[first:], image.cosines, count - first)
        return chosen(len(order), np.concatenate([order[:first], diverse]))


def unlike(rest: np.ndarray, cosines: np.ndarray, count: int) -> np.ndarray:
    """Return `count` of the tokens `rest`, thinned by similarity; `cosines` [V, V] of all tokens."""
    while count and len(rest) > count:
        a, b = rest[::2], rest[1::2]
        similarity = cosines[np.ix_(a, b)].max(1)
        leaving = min(STEP, len(rest) - count)
        rest = np.concatenate([a[np.argsort(-similarity, kind="stable")[leaving:]], b])
    return rest[:count]
