"""VTW, visual tokens withdrawal (arXiv 2405.05803): every visual token leaves at one layer.

Idea: by the middle of the decoder the text has read the image, and the visual tokens can go: layers 0 .. k−1 run with
all of them, layers k .. with none. The paper searches the k whose output distribution stays closest to the dense one
(KL divergence on twenty samples).

The original code (lzhxmu/VTW) drops them at the entry of layer `k`, counted from 0, and its scripts pass 15 for the 7B;
it assumes 35 tokens before one image of 576, batch 1. Positions stay in both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from ..config import PruningConfig, check_number, scaled_boundary
from ..policy import Policy
from .budget import check_in_decoder


@dataclass(frozen=True)
class VTW(PruningConfig):
    """Drop all visual tokens before layer `k`.

    k:
        first layer without visual tokens; 0 is the language model alone. None: half of the model's layers, as the
        paper found for LLaVA-1.5 (16 of 32, 20 of 40)
    """

    k: int | None = None

    method: ClassVar[str] = "vtw"

    def __post_init__(self):
        super().__post_init__()
        if self.k is not None:
            check_number("k", self.k, int, 0)

    def resolved(self, num_layers: int) -> Self:
        """Fill in `k`: half of the layers."""
        return self if self.k is not None else replace(self, k=scaled_boundary(16, num_layers))

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when `k` is not a layer of the model."""
        check_in_decoder(self, num_layers, "k")

    def start(self, num_layers: int) -> Policy:
        """Return the decision maker of one prompt."""
        return _Prompt(self.k)


class _Prompt(Policy):
    def __init__(self, k: int):
        self.k = k

    def keep(self, layer: int, positions: np.ndarray, measured: None) -> np.ndarray | None:
        return np.zeros(len(positions), bool) if layer + 1 == self.k else None
