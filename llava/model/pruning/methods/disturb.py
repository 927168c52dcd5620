"""Disturb chosen visual tokens after one layer: replace them by noise, or remove them and keep the others.

The controls of a selection rule (arXiv 2510.17205 argues that fusion runs through few critical tokens): if those that a
rule puts first carry what the answer needs, it is lost with them, and noise in their place does not bring it back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ..config import PruningConfig, check_choice, check_number
from ..influence import Influence, Measurement
from ..packed import upload
from ..policy import Policy, Selection, strongest
from ..probes import Attention, AttentionProbe, Probe
from .attention_topk import RANKS
from .budget import check_in_decoder


@dataclass(frozen=True)
class Disturb(PruningConfig):
    """Disturb the `count` visual tokens that `rank` puts at one end.

    layer:
        the layer that is measured, from 0; the next one runs with disturbed tokens
    count, share:
        tokens to disturb, as a number or as a share of the prompt's; of fewer tokens, all
    rank:
        as in `attention_topk`: `influence`, or attention from `last`, `text` or `visual` rows; or `random`
    end:
        `top`, the highest scores, or `bottom`
    how:
        `noise`: a normal vector of the token's own root mean square replaces its hidden state; `remove`: it is dropped
    seed:
        of noise and random ranks; prompts with equally many visual tokens draw the same
    """

    layer: int | None = None
    count: int | None = None
    share: float | None = None
    rank: str = "influence"
    end: str = "top"
    how: str = "noise"
    seed: int = 0

    method: ClassVar[str] = "disturb"

    def __post_init__(self):
        super().__post_init__()
        if self.layer is None:
            raise ValueError("method 'disturb' needs 'layer' in the pruning config")
        check_number("layer", self.layer, int, 0)
        if (self.count is None) == (self.share is None):
            given = "both" if self.count is not None else "neither"
            raise ValueError(f"method 'disturb' needs 'count' or 'share' in the pruning config, got {given}")
        if self.count is not None:
            check_number("count", self.count, int, 0)
        else:
            check_number("share", self.share, float, 0, 1)
        check_choice("rank", self.rank, (*RANKS, "random"))
        check_choice("end", self.end, ("top", "bottom"))
        check_choice("how", self.how, ("noise", "remove"))
        check_number("seed", self.seed, int, 0)

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when `layer` is not a layer of the model."""
        check_in_decoder(self, num_layers, "layer")

    def start(self, num_layers: int) -> Policy:
        """Return the decision maker of one prompt."""
        return _Prompt(self)


class _Prompt(Policy):
    def __init__(self, config: Disturb):
        self.config = config

    def probe(self, layer: int) -> Probe | None:
        config = self.config
        if layer != config.layer or config.rank == "random":
            return None
        return Influence() if config.rank == "influence" else AttentionProbe((config.rank,))

    def keep(self, layer: int, positions: np.ndarray, measured: Attention | Measurement | None) -> Selection | None:
        config, tokens = self.config, len(positions)
        if layer != config.layer:
            return None
        self.filter_layer = layer
        if config.rank == "random":
            scores = np.random.default_rng(config.seed).permutation(tokens).astype(np.float32)
        else:
            scores = measured.l2 if config.rank == "influence" else getattr(measured, config.rank)
        count = round(config.share * tokens) if config.count is None else config.count
        chosen = strongest(scores if config.end == "top" else -scores, min(count, tokens))
        if config.how == "remove":
            return Selection(~chosen)
        return Selection(np.ones(tokens, bool), _noise(chosen, config.seed))


def _noise(chosen: np.ndarray, seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what puts noise in place of the chosen of hidden states [V, D], drawn on the host: alike on any device."""

    def rewrite(hidden: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(seed)).to(hidden.device)
        scale = hidden.float().square().mean(-1, keepdim=True).sqrt()
        places = upload(chosen, hidden.device)[:, None]
        return torch.where(places, (drawn * scale).to(hidden.dtype), hidden)

    return rewrite
