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

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..config import PruningConfig, check_number
from ..policy import Policy, strongest
from ..probes import Attention, AttentionProbe
from .budget import as_tuple

SCORES = AttentionProbe(rows=("text", "visual"), heads="max")


@dataclass(frozen=True)
class FitPrune(PruningConfig):
    """Keep `keep[l]` visual tokens after layer l.

    keep:
        one number a layer, never rising; the last layer's has no effect
    visual_tokens:
        the number of visual tokens that `keep` is meant for; prompts with others scale it
    """

    keep: tuple[int, ...] | None = None
    visual_tokens: int = 576

    method: ClassVar[str] = "fitprune"

    def __post_init__(self):
        super().__post_init__()
        if self.keep is None:
            raise ValueError("method 'fitprune' needs 'keep' in the pruning config: one number a layer, as fit() makes")
        as_tuple(self, "keep", int, 0)
        check_number("visual_tokens", self.visual_tokens, int, 1)
        counts = (self.visual_tokens, *self.keep)
        if any(later > earlier for earlier, later in zip(counts, counts[1:], strict=False)):
            raise ValueError("'keep' must not rise from layer to layer, nor above 'visual_tokens'")

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when `keep` is of a model with another number of layers."""
        if len(self.keep) != num_layers:
            raise ValueError(f"'keep' has {len(self.keep)} numbers, but the model has {num_layers} layers; fit it anew")

    def start(self, num_layers: int) -> Policy:
        """Return the decision maker of one prompt."""
        return _Prompt(self)


class _Prompt(Policy):
    def __init__(self, config: FitPrune):
        self.config = config
        self.visual_tokens = self.left = 0

    def _count(self, layer: int) -> int:
        return round(self.config.keep[layer] * self.visual_tokens / self.config.visual_tokens)

    def probe(self, layer: int) -> AttentionProbe | None:
        return SCORES if layer >= 0 and 0 < self._count(layer) < self.left else None

    def keep(self, layer: int, positions: np.ndarray, measured: Attention | None) -> np.ndarray | None:
        if layer < 0:
            self.visual_tokens = self.left = len(positions)
            return None
        count = self._count(layer)
        if count >= self.left:
            return None
        self.left = count
        if self.filter_layer is None and count:
            self.filter_layer = layer
        return strongest(measured.text * measured.visual, count) if count else np.zeros(len(positions), bool)
