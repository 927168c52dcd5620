"""What methods share that choose each image's visual tokens before the decoder, by what its encoder made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch

from ..method import AtLeast, Method, PromptState, Selection, Share
from ..packed import upload
from ..probes import Probe
from ..vision import EncoderProbe, EncoderReading, SeenImage
from .controls import RandomPruning
from .ranking import BeforeDecoder, kept_count

Place = tuple[int, Mapping[int, float]]
"""A patch whose place stays, and what goes there: weights of the encoder's features, by index."""


@dataclass(frozen=True)
class ByEncoder(BeforeDecoder):
    """Base class: `choose` says which visual tokens of one image stay.

    keep, share:
        visual tokens that stay, as a number from 1 or as a share of the prompt's; images share them by their size
    """

    keep: Annotated[int, AtLeast(1)] | None = None
    share: Share | None = None

    reads_vision: ClassVar[tuple[EncoderReading, ...]] = (EncoderReading("class"),)
    cosines: ClassVar[Literal["features", "tokens"] | None] = None
    """Which cosines `choose` gets (see `EncoderProbe`)."""

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        return EncoderProbe(self.reads_vision, self.cosines) if layer < 0 else None

    def select(self, layer: int, prompt: PromptState, measured: list[SeenImage] | None) -> np.ndarray | None:
        if measured is None:
            return None
        counts = divided(max(kept_count(self, prompt), 1), [len(image.readings[0]) for image in measured])
        return np.concatenate([self.choose(image, count) for image, count in zip(measured, counts, strict=True)])

    def choose(self, image: SeenImage, count: int) -> np.ndarray:
        """Return which visual tokens of an image stay: bool [V], `count` of them."""
        raise NotImplementedError

    def countable(self, visual_tokens: int) -> Method:
        return RandomPruning(keep=self.keep, share=self.share, before=self.before)


def divided(total: int, sizes: Sequence[int]) -> list[int]:
    """Return whole numbers that sum to `total`, in proportion to `sizes`, the earlier one first where two are equal."""
    exact = np.array(sizes) * total / sum(sizes)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts.tolist()


def chosen(tokens: int, places: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return bool [tokens], true at `places`."""
    mask = np.zeros(tokens, bool)
    mask[places] = True
    return mask


def mixed(images: Sequence[tuple[SeenImage, list[Place]]], positions: Literal["original", "compact"]) -> Selection:
    """Return the selection that puts a mixture of an image's features, projected, at each of its places.

    positions: `original` orders an image's places as they lie in it; `compact` leaves them in the order given
    """
    keeps, mixes = [], []
    for image, rows in images:
        states, tokens = image.states, len(image.readings[0])
        keeps.append(chosen(tokens, [place for place, _ in rows]))
        ordered = sorted(rows, key=lambda row: row[0]) if positions == "original" else rows
        mix = np.zeros((len(rows), len(states.features)), np.float32)
        for row, (_, weights) in enumerate(ordered):
            mix[row, list(weights)] = list(weights.values())
        mixes.append((states, mix))

    def rewrite(visual: torch.Tensor) -> torch.Tensor:
        """[V, D] → [kept, D]: each image's features mixed, then projected."""
        parts = []
        for states, mix in mixes:
            features = upload(mix, states.features.device) @ states.features.float()
            parts.append(states.project(features.to(states.features.dtype)).to(visual))
        return torch.cat(parts)

    return Selection(np.concatenate(keeps), rewrite)
