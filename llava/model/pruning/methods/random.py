"""Random pruning: the control that every pruning method has to beat. Keeps visual tokens drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..config import PruningConfig, check_number
from ..policy import Policy
from .budget import budget, check_budget, check_in_decoder


@dataclass(frozen=True)
class RandomPruning(PruningConfig):
    """Keep visual tokens of each prompt, drawn uniformly, from the layer after `layer` on.

    layer:
        last layer that runs with all visual tokens, from 0; None: no layer does, they are drawn before the decoder
    keep, share:
        visual tokens that stay, as a number or as a share of the prompt's; 0 drops vision there
    exit_layer:
        first layer without visual tokens; None: they stay to the end
    seed:
        of the draw; prompts of equal length keep the same places
    """

    layer: int | None = None
    keep: int | None = None
    exit_layer: int | None = None
    seed: int = 0
    share: float | None = None

    method: ClassVar[str] = "random"

    def __post_init__(self):
        super().__post_init__()
        check_budget(self)
        check_number("seed", self.seed, int, 0)
        if self.layer is not None:
            check_number("layer", self.layer, int, 0)
        if self.exit_layer is not None:
            check_number("exit_layer", self.exit_layer, int, 1 + (-1 if self.layer is None else self.layer))

    @property
    def before_decoder(self) -> bool:
        """True where no layer is named."""
        return self.layer is None and self.exit_layer is None

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when a boundary is not a layer of the model."""
        check_in_decoder(self, num_layers, "layer", "exit_layer")

    def start(self, num_layers: int) -> Policy:
        """Return the decision maker of one prompt."""
        return _Prompt(self)


class _Prompt(Policy):
    def __init__(self, config: RandomPruning):
        self.config = config
        self.layer = -1 if config.layer is None else config.layer

    def keep(self, layer: int, positions: np.ndarray, measured: None) -> np.ndarray | None:
        config, visual_tokens = self.config, len(positions)
        if config.exit_layer is not None and layer + 1 == config.exit_layer:
            return np.zeros(visual_tokens, bool)
        if layer != self.layer:
            return None
        if layer >= 0:
            self.filter_layer = layer
        drawn = np.random.default_rng(config.seed).permutation(visual_tokens)[: budget(config, visual_tokens)]
        return np.isin(np.arange(visual_tokens), drawn)
