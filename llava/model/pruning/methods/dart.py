"""DART (arXiv 2502.11494): after K layers, keep the visual tokens that resemble a few pivots least.

Pivots are the visual and the text tokens behind the image whose keys in layer K−1 are longest (sum of absolute values
over all heads). Each pivot in turn adds the visual tokens that are least similar to it (cosine of the layer's output)
among those not kept yet, equally many each; the visual pivots stay too.

The original code (ZichenWen1/DART) takes the cosines behind the decoder's last norm (here of the layer's output as it
is), goes through the pivots in the order of a Python set (here visual ones first, the longest first), and keeps
⌊n / pivots⌋ tokens per pivot beside the visual pivots, four more than asked for and fewer by rounding (here `keep`
counts all, and the first pivots take what does not divide). Where it groups keys by token it reads the shape of before
a transpose, so that rows mix heads and tokens. It knows one image and batch 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from ..method import AtLeast, Count, Layer, Method, PromptState, Share
from ..packed import upload
from ..probes import LayerStates, Probe, rows_of
from .by_encoder import chosen, divided
from .controls import RandomPruning
from .ranking import check_one_of, kept_count


@dataclass(frozen=True)
class DART(Method, name="dart"):
    """Keep the visual tokens that resemble pivots least, after `k` layers.

    k:
        number of layers that run with all visual tokens, from 1
    keep, share:
        visual tokens that stay, as a number or as a share of the prompt's
    visual_pivots, text_pivots:
        how many pivots of each kind there are
    """

    k: Annotated[Layer, AtLeast(1)] = 2
    keep: Count | None = None
    share: Share | None = None
    visual_pivots: Annotated[int, AtLeast(1)] = 4
    text_pivots: Count = 4

    def check(self) -> None:
        check_one_of(self, "keep", "share")

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        return PivotProbe(self.visual_pivots, self.text_pivots) if layer + 1 == self.k else None

    def select(self, layer: int, prompt: PromptState, measured: Pivots | None) -> np.ndarray | None:
        if measured is None:
            return None
        count = kept_count(self, prompt)
        pivots = measured.visual.astype(int)[:count]
        kept = chosen(len(prompt.positions), pivots)
        for similarity, more in zip(
            measured.cosine, divided(count - len(pivots), [1] * len(measured.cosine)), strict=True
        ):
            kept[np.argsort(np.where(kept, np.inf, similarity), kind="stable")[:more]] = True
        return kept

    @classmethod
    def schedules(cls, num_layers: int) -> list[Method]:
        """Every `k`."""
        return [cls(k=k, share=1.0) for k in range(1, num_layers)]

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        return replace(self, keep=None, share=share)

    def countable(self, visual_tokens: int) -> Method:
        return RandomPruning(self.k - 1, self.keep, share=self.share, before=self.before)


class Pivots(NamedTuple):
    """Visual pivots [p] among the visual tokens, and the cosine of each pivot, text ones last, to all: [p + t, V]."""

    visual: np.ndarray
    cosine: np.ndarray


@dataclass(frozen=True)
class PivotProbe(Probe):
    """The longest keys of a layer, and how similar the visual tokens are to their tokens."""

    visual: int
    text: int

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return the two fields of `Pivots` of each prompt, one after the other."""
        tokens, result = states.tokens, []
        device = tokens.hidden.device
        length = states.key[0, ..., : states.value.shape[-1]].float().abs().sum((0, 2))  # [T]
        for b in prompts:
            places = upload(tokens.visual_places[b], device)
            text = upload(tokens.spans[b][0] + rows_of(tokens, b, "text"), device)
            first = length[places].topk(min(self.visual, len(places))).indices
            others = text[length[text].topk(min(self.text, len(text))).indices]
            visual = normalize(tokens.visual_hidden(b).float(), dim=-1)
            asked = normalize(tokens.hidden[0].index_select(0, others).float(), dim=-1)
            result += [first, torch.cat((visual[first], asked)) @ visual.T]
        return result

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[Pivots]:
        """Group the fields again."""
        return [Pivots(*arrays[2 * row : 2 * row + 2]) for row in range(len(prompts))]
