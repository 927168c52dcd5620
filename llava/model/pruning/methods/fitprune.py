"""FitPrune (arXiv 2409.10197): a number of visual tokens for every layer, fitted so that attention stays as it was.

After layer l the visual tokens with the lowest product of two scores are dropped until `keep[l]` are left: the
attention that token j receives from the text rows after the image, and from the visual rows, each row's largest over
heads. The numbers come from a few prompts (`fitting.fit`), by bisection: the smallest α at which dropping, in every
layer, as many tokens as both distributions lose no more than the share α of their dense mass reaches the wanted FLOPs.

The original code (ywh187/FitPrune) keeps tables of numbers to *delete* from 576 for LLaVA-1.5-7B in the middle of the
attention, and drops the tokens between attention and MLP of the same layer; here they run that layer's MLP too. It
knows one image after 35 tokens, batch 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated

import numpy as np

from ..method import EXIT, AtLeast, Count, Method, PromptState, Selection, strongest
from ..probes import Attention, AttentionProbe

SCORES = AttentionProbe("text", "visual", heads="max")
REACH = 0.5
"""By how much `with_budget` scales fitted numbers, up or down."""


@dataclass(frozen=True)
class FitPrune(Method, name="fitprune"):
    """Keep `keep[l]` visual tokens after layer l.

    keep:
        one number per layer, never rising; the last layer's has no effect
    visual_tokens:
        the number of visual tokens that `keep` is meant for; prompts with others scale it
    """

    keep: tuple[Count, ...]
    visual_tokens: Annotated[int, AtLeast(1)] = 576

    def check(self) -> None:
        if any(later > earlier for earlier, later in pairwise((self.visual_tokens, *self.keep))):
            raise ValueError("'keep' must not rise from layer to layer, nor above 'visual_tokens'")

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when `keep` is of a model with another number of layers."""
        if len(self.keep) != num_layers:
            raise ValueError(
                f"'keep' has {len(self.keep)} numbers, but the model has {num_layers} layers; fit it to this model"
            )

    def _count(self, layer: int, prompt: PromptState) -> int:
        return round(self.keep[layer] * prompt.visual_tokens / self.visual_tokens)

    def probe(self, layer: int, prompt: PromptState) -> AttentionProbe | None:
        return SCORES if layer >= 0 and 0 < self._count(layer, prompt) < len(prompt.positions) else None

    def select(self, layer: int, prompt: PromptState, measured: Attention | None) -> np.ndarray | Selection | None:
        if layer < 0 or self._count(layer, prompt) >= len(prompt.positions):
            return None
        count = self._count(layer, prompt)
        return strongest(measured.text * measured.visual, count) if count else EXIT

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        scale = 1 - REACH + 2 * REACH * share
        return replace(self, keep=tuple(min(self.visual_tokens, round(scale * count)) for count in self.keep))
