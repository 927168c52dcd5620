"""DivPrune (arXiv 2503.02175): before the decoder, keep the visual tokens that differ most from each other.

Max–min diversity over the visual tokens' embeddings, with the distance 1 − cos: the first token is the one whose
nearest neighbour is farthest; then, until enough are chosen, the one whose nearest chosen token is farthest (greedy,
the earlier token where two are equal). The question plays no part. For several images the tokens of all are one set.

The original code (vbdi/divprune) takes the share from an environment variable and rounds it to no token at all where it
is small (here at least one stays), computes the cosines in the model's half precision (here fp32), and renumbers the
remaining tokens' positions from 0 (`"positions": "compact"`; here they stay, which is the default). A chosen token
stays in the running there: equal vectors, and in bf16 merely similar ones, are chosen again and again. It prunes the
first image only, after 35 tokens; with a batch the first row's choice cuts every row, and labels are not cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch

from ..method import AtLeast, PromptState, Share
from ..probes import LayerStates, Probe
from .ranking import BeforeDecoder, kept_count


@dataclass(frozen=True)
class DivPrune(BeforeDecoder, name="divprune"):
    """Keep the most diverse visual tokens, before the decoder.

    keep, share:
        visual tokens that stay, as a number from 1 or as a share of the prompt's
    positions:
        `original`, or `compact` as in the original code
    """

    keep: Annotated[int, AtLeast(1)] | None = None
    share: Share | None = None
    positions: Literal["original", "compact"] = "original"

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        return Cosines() if layer < 0 else None

    def select(self, layer: int, prompt: PromptState, measured: np.ndarray | None) -> np.ndarray | None:
        if measured is None:
            return None
        chosen = np.zeros(len(measured), bool)
        chosen[most_diverse(1 - measured, max(kept_count(self, prompt), 1))] = True
        return chosen


@dataclass(frozen=True)
class Cosines(Probe):
    """Cosine of every two visual tokens' hidden states, fp32 [V, V]."""

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return [V, V] of each prompt."""
        units = (torch.nn.functional.normalize(states.tokens.visual_hidden(b).float(), dim=-1) for b in prompts)
        return [unit @ unit.T for unit in units]


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
