"""DivPrune (arXiv 2503.02175): before the decoder, keep the visual tokens that differ most from each other.

Max–min diversity over the visual tokens' embeddings, with the distance 1 − cos: the first token is the one whose
nearest neighbour is farthest; then, until enough are chosen, the one whose nearest chosen token is farthest (greedy,
the earlier token where two are equal). The question plays no part.

The original code (vbdi/divprune) takes the share from an environment variable, computes the cosines in the model's
half precision (here fp32), and counts the remaining tokens' positions anew (`"positions": "compact"`; here they stay,
which is the default); one image, 35 tokens before it. For several images the tokens of all are one set here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ..config import PruningConfig
from ..policy import Policy
from ..probes import LayerStates, Probe
from .budget import budget, check_budget, check_positions


@dataclass(frozen=True)
class DivPrune(PruningConfig):
    """Keep the most diverse visual tokens, before the decoder.

    keep, share:
        visual tokens that stay, as a number from 1 or as a share of the prompt's
    positions:
        `original`, or `compact` as in the original code
    """

    keep: int | None = None
    share: float | None = None
    positions: str = "original"

    method: ClassVar[str] = "divprune"
    before_decoder: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_budget(self, least=1)
        check_positions(self)

    def start(self, num_layers: int) -> Policy:
        """Return the decision maker of one prompt."""
        return _Prompt(self)


@dataclass(frozen=True)
class Cosines(Probe):
    """Cosine of every two visual tokens' hidden states, fp32 [V, V]."""

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return [V, V] of each prompt."""
        units = (torch.nn.functional.normalize(states.tokens.visual_hidden(b).float(), dim=-1) for b in prompts)
        return [unit @ unit.T for unit in units]

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return them as they are."""
        return list(arrays)


class _Prompt(Policy):
    def __init__(self, config: DivPrune):
        self.config = config

    def probe(self, layer: int) -> Cosines | None:
        return Cosines() if layer < 0 else None

    def keep(self, layer: int, positions: np.ndarray, measured: np.ndarray | None) -> np.ndarray | None:
        if measured is None:
            return None
        count = max(budget(self.config, len(positions)), 1)
        chosen = np.zeros(len(positions), bool)
        chosen[most_diverse(1 - measured, count)] = True
        return chosen


def most_diverse(distance: np.ndarray, count: int) -> list[int]:
    """Return `count` indices of a greedy max–min choice under distance [V, V], in the order they were chosen."""
    others = distance.copy()
    np.fill_diagonal(others, np.inf)
    chosen = [int(others.min(0).argmax())]
    nearest = distance[chosen[0]].copy()
    for _ in range(count - 1):
        nearest[chosen[-1]] = -np.inf
        chosen.append(int(nearest.argmax()))
        np.minimum(nearest, distance[chosen[-1]], out=nearest)
    return chosen
