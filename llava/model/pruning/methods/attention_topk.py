"""Rank by attention, or by influence, at one layer: the selection rules that VisiPruner's Table 4 compares.

At layer `layer` each visual token gets a score, and the highest stay from the next layer on. Scores: `last`, attention
of the last prompt token; `text`, mean attention of the text rows after the first visual token; `visual`, mean attention
of the visual rows (heads averaged in all three); `influence`, ‖concat_h A[h, last, j] v[h, j]‖₂ (see `influence`).

arXiv 2510.17205, Table 4 (layer 16 counted from 1, 10 tokens); the published code has no switch for these rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..method import EXIT, Count, Layer, Method, PromptState, Selection, Share, strongest
from ..probes import Probe
from .controls import RandomPruning
from .ranking import RANKS, check_exit, check_one_of, kept_count, rank_probe, rank_scores


@dataclass(frozen=True)
class AttentionTopK(Method, name="attention_topk"):
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

    layer: Layer
    keep: Count | None = None
    share: Share | None = None
    rank: Literal["last", "text", "visual", "influence"] = "last"
    exit_layer: Layer | None = None

    def check(self) -> None:
        check_one_of(self, "keep", "share")
        check_exit(self.exit_layer, self.layer + 2)

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        return rank_probe(self.rank) if layer == self.layer else None

    def select(self, layer: int, prompt: PromptState, measured: Any) -> np.ndarray | Selection | None:
        if measured is None:
            return EXIT if layer + 1 == self.exit_layer else None
        return strongest(rank_scores(self.rank, measured), kept_count(self, prompt))

    @classmethod
    def schedules(cls, num_layers: int) -> list[Method]:
        """Every layer but the last, by each of the ranks that no other method has."""
        return [cls(layer=layer, share=1.0, rank=rank) for rank in RANKS[1:] for layer in range(num_layers - 1)]

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        return replace(self, keep=None, share=share)

    def countable(self, visual_tokens: int) -> Method:
        return RandomPruning(self.layer, self.keep, self.exit_layer, share=self.share, before=self.before)
