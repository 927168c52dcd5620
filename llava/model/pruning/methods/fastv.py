"""FastV (arXiv 2403.06764): after K layers, drop the visual tokens that the last prompt token attends to least.

With A the attention of layer K−1, averaged over heads, visual token j scores A[last, j]; the (1−R)·V highest stay for
layers K, K+1, … at their positions.

The original code (pkunlp-icler/FastV) has two versions: one drops the tokens, the other hides them behind an attention
mask and saves nothing. It takes the number to keep (`fast_v_attention_rank`) instead of R, the places of one image as
constants, batch 1, and with K = 0 it draws tokens at random (here: method `random`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..config import PruningConfig, check_number
from ..policy import Policy, strongest
from ..probes import Attention, AttentionProbe
from .budget import check_in_decoder


@dataclass(frozen=True)
class FastV(PruningConfig):
    """Drop the share `r` of the visual tokens after `k` layers.

    k:
        number of layers that run with all visual tokens, from 1; the last of them ranks
    r:
        share of the visual tokens that is dropped
    """

    k: int = 2
    r: float = 0.5

    method: ClassVar[str] = "fastv"

    def __post_init__(self):
        super().__post_init__()
        check_number("k", self.k, int, 1)
        check_number("r", self.r, float, 0, 1)

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when the model has no layer `k`."""
        check_in_decoder(self, num_layers, "k")

    def start(self, num_layers: int) -> Policy:
        """Return the decision maker of one prompt."""
        return _Prompt(self)


class _Prompt(Policy):
    def __init__(self, config: FastV):
        self.config = config

    def probe(self, layer: int) -> AttentionProbe | None:
        return AttentionProbe(("last",)) if layer + 1 == self.config.k else None

    def keep(self, layer: int, positions: np.ndarray, measured: Attention | None) -> np.ndarray | None:
        if measured is None:
            return None
        self.filter_layer = layer
        return strongest(measured.last, round((1 - self.config.r) * len(positions)))
