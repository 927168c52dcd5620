"""HoloV (arXiv 2510.02912): before the decoder, every crop of the image gets tokens by how much it has to say.

The visual tokens are cut into `crops` runs of equal length (the first ones a token longer where it does not divide). A
token scores 1000 · a + `alpha` · v · mean(1000 · a) / mean(v) over its crop, with a the class token's attention (heads
averaged, the layer whose output is projected) and v the variance of its cosines to the crop's other tokens, as the
projector made them. A crop's share of the tokens that stay is its mean score; in it, the most attended ones stay.

The original code (obananas/HoloV) takes 16 crops and 64 tokens as constants, counts a zero for a token's cosine to
itself into the variance (as here), fills up with zero vectors where a crop has fewer tokens than it is given (here the
most attended ones left take their places), orders the tokens of a crop by attention (here as they lie), and closes up
positions (here they stay). Its version for Qwen2.5-VL takes the last block's attention and keeps positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from ..method import AtLeast, strongest
from ..vision import SeenImage
from .by_encoder import ByEncoder, chosen

SCALE, EPSILON = 1e3, 1e-6


@dataclass(frozen=True)
class HoloV(ByEncoder, name="holov"):
    """Keep visual tokens of every crop of every image, before the decoder.

    crops:
        runs that an image's visual tokens are cut into
    alpha:
        weight of the variance of cosines beside attention
    """

    crops: Annotated[int, AtLeast(1)] = 16
    alpha: Annotated[float, AtLeast(0)] = 0.09

    cosines = "tokens"

    def choose(self, image: SeenImage, count: int) -> np.ndarray:
        """Return the most attended tokens of each crop, as many as its score is worth."""
        attention = image.readings[0]
        runs = np.array_split(np.arange(len(attention)), min(self.crops, len(attention)))
        scores = np.array([self._score(attention[run], image.cosines[np.ix_(run, run)]) for run in runs])
        weights = scores / (scores.sum() + EPSILON)
        counts = np.floor(weights * count).astype(int)
        counts[np.argsort(-weights, kind="stable")[: count - counts.sum()]] += 1
        kept = np.concatenate([run[strongest(attention[run], n)] for run, n in zip(runs, counts, strict=True)])
        mask = chosen(len(attention), kept)
        return mask | strongest(np.where(mask, -np.inf, attention), count - int(mask.sum()))

    def _score(self, attention: np.ndarray, cosines: np.ndarray) -> float:
        """Return the mean score of a crop: attention [n], cosines [n, n]."""
        others = len(attention) - 1
        if not others:
            return float(attention[0])
        cosines = cosines * (1 - np.eye(others + 1, dtype=np.float32))
        mean = cosines.sum(1, keepdims=True) / others
        variance = np.square(cosines - mean).sum(1) / others
        scaled = attention * SCALE
        variance *= np.abs(scaled).mean() / (np.abs(variance).mean() + EPSILON)
        return float((scaled + self.alpha * variance).mean())
