"""Rank by attention, or by influence, at one layer: the selection rules that VisiPruner's Table 4 compares.

At layer `layer` each visual token gets a score, and the highest stay from the next layer on. Scores: `last`, attention
of the last prompt token; `text`, mean attention of the text rows after the first visual token; `visual`, mean attention
of the visual rows (heads averaged in all three); `influence`, ‖concat_h A[h, last, j] v[h, j]‖₂ (see `influence`).

arXiv 2510.17205, Table 4 (layer 16 counted from 1, 10 tokens); the published code has no switch for these rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..config import PruningConfig, check_choice, check_number
from ..influence import Influence, Measurement
from ..policy import Policy, strongest
from ..probes import Attention, AttentionProbe, Probe
from .budget import budget, check_budget, check_in_decoder

RANKS = ("last", "text", "visual", "influence")


@dataclass(frozen=True)
class AttentionTopK(PruningConfig):
    """Keep the visual tokens that `rank` puts first at `layer`.

    layer:
        the layer that is measured, from 0; the last with all visual tokens
    keep, share:
        visual tokens that stay, as a number or as a share of the prompt's
    rank:
        `last`, `text`, `visual` or `influence`
    exit_layer:
        first layer without visual tokens; None: they stay to the end
    """

    layer: int | None = None
    keep: int | None = None
    share: float | None = None
    rank: str = "last"
    exit_layer: int | None = None

    method: ClassVar[str] = "attention_topk"

    def __post_init__(self):
        super().__post_init__()
        if self.layer is None:
            raise ValueError("method 'attention_topk' needs 'layer' in the pruning config")
        check_number("layer", self.layer, int, 0)
        check_budget(self)
        check_choice("rank", self.rank, RANKS)
        if self.exit_layer is not None:
            check_number("exit_layer", self.exit_layer, int, self.layer + 2)

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when a boundary is not a layer of the model."""
        check_in_decoder(self, num_layers, "layer", "exit_layer")

    def start(self, num_layers: int) -> Policy:
        """Return the decision maker of one prompt."""
        return _Prompt(self)


class _Prompt(Policy):
    def __init__(self, config: AttentionTopK):
        self.config = config

    def probe(self, layer: int) -> Probe | None:
        if layer != self.config.layer:
            return None
        return Influence() if self.config.rank == "influence" else AttentionProbe((self.config.rank,))

    def keep(self, layer: int, positions: np.ndarray, measured: Attention | Measurement | None) -> np.ndarray | None:
        config = self.config
        if measured is None:
            return np.zeros(len(positions), bool) if layer + 1 == config.exit_layer else None
        self.filter_layer = layer
        scores = measured.l2 if config.rank == "influence" else getattr(measured, config.rank)
        return strongest(scores, budget(config, len(positions)))
