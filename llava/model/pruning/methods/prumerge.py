"""PruMerge+ (LLaVA-PruMerge, arXiv 2403.15388): before the decoder, attended and spaced patches, others merged in.

In the encoder layer after the one whose output is projected, with the queries and keys of all heads as one, the class
token's attention a ranks an image's patches. Those above Q3 + 1.5 (Q3 − Q1) stay, and beside them every third of the
step at which as many would lie evenly. Each kept token is its feature plus Σ a_j x_j over the `neighbours` patches with
the most similar keys (cosine), kept ones among them; one more token is Σ a_j x_j over all that went. All goes through
the projector.

The original code (42Shawn/LLaVA-PruMerge) has layer 23, 575 patches and batch 1 as constants, so that its last patch is
never an evenly spaced one (as here); in training it takes a fixed eighth. With `keep` or `share`, half of the tokens
are the most attended ones and half are spaced evenly among the others. It merges in half precision (here fp32), puts
the tokens in the order of their attention and closes up positions (`"positions": "compact"`; here a token keeps its
patch's position, the last one that of the last free patch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np

from ..method import AtLeast, Method, PromptState, Selection
from ..vision import EncoderReading, SeenImage
from .by_encoder import ByEncoder, Place, divided, mixed
from .controls import RandomPruning
from .ranking import check_one_of, kept_count


@dataclass(frozen=True)
class PruMerge(ByEncoder, name="prumerge"):
    """Keep attended and evenly spaced visual tokens of every image with the others merged in, before the decoder.

    keep, share:
        visual tokens that stay, as a number or as a share of the prompt's; neither: as many as are outliers, spaced
        ones beside them
    neighbours:
        patches that are merged into each kept one
    positions:
        `original`, or `compact` as in the original code
    """

    neighbours: Annotated[int, AtLeast(1)] = 32
    positions: Literal["original", "compact"] = "original"

    reads_vision: ClassVar = (EncoderReading("joint", "next"), EncoderReading("joint keys", "next"))
    encoder_needs = ("class_token", "patchwise")

    def check(self) -> None:
        if self.keep is not None or self.share is not None:
            check_one_of(self, "keep", "share")

    def select(self, layer: int, prompt: PromptState, measured: list[SeenImage] | None) -> Selection | None:
        if measured is None:
            return None
        counts = [None] * len(measured)
        if self.keep is not None or self.share is not None:
            counts = divided(max(kept_count(self, prompt), 1), [len(image.readings[0]) for image in measured])
        rows = [self._merge(*image.readings, count) for image, count in zip(measured, counts, strict=True)]
        return mixed(list(zip(measured, rows, strict=True)), self.positions)

    def countable(self, visual_tokens: int) -> Method:
        if self.keep is None and self.share is None:
            raise ValueError("'prumerge' without 'keep' and 'share' decides by measurement how many tokens stay")
        return RandomPruning(keep=self.keep, share=self.share, before=self.before)

    def _merge(self, attention: np.ndarray, keys: np.ndarray, count: int | None) -> list[Place]:
        """Return the places of one image: attention [P], keys [P, d]; feature 0 is the class token."""
        patches = len(attention)
        if count is not None and count >= patches:
            return [(patch, {1 + patch: 1.0}) for patch in range(patches)]
        kept = outliers(attention) if count is None else spaced(attention, count - 1)
        unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        rows: list[Place] = []
        for patch in kept:
            similarity = unit @ unit[patch]
            similarity[patch] = -np.inf
            near = np.argsort(-similarity, kind="stable")[: min(self.neighbours, patches - 1)]
            rows.append((int(patch), {1 + int(j): float(attention[j]) for j in near} | {1 + int(patch): 1.0}))
        rest = np.setdiff1d(np.arange(patches), kept)
        if len(rest):
            rows.append((int(rest[-1]), {1 + int(j): float(attention[j]) for j in rest}))
        return rows


def outliers(attention: np.ndarray) -> np.ndarray:
    """Return the patches of unusually high attention, most attended first, then evenly spaced others."""
    low, high = np.percentile(attention, [25, 75])
    ratio = float((attention > high + 1.5 * (high - low)).mean())
    number = int(len(attention) * ratio)
    first = np.argsort(-attention, kind="stable")[:number]
    step = max(1, int(1 / ratio) // 3) if number else len(attention)
    even = np.arange(0, len(attention) - 1, step)
    return np.concatenate([first, even[~np.isin(even, first)]])


def spaced(attention: np.ndarray, count: int) -> np.ndarray:
    """Return `count` patches: half of them the most attended, the others evenly spaced among the rest."""
    first = np.argsort(-attention, kind="stable")[: count // 2]
    rest = np.setdiff1d(np.arange(len(attention)), first)
    others = count - len(first)
    return np.concatenate([first, rest[(2 * np.arange(others) + 1) * len(rest) // (2 * max(others, 1))]]).astype(int)
