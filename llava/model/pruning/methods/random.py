"""Random pruning: the control that every pruning method has to beat. Keeps visual tokens drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..config import PruningConfig, check_number
from ..policy import Measurement, Policy


@dataclass(frozen=True)
class RandomPruning(PruningConfig):
    """Keep `keep` visual tokens of each prompt, drawn uniformly, from the layer after `layer` on.

    layer:
        last layer that runs with all visual tokens, from 0
    keep:
        visual tokens that stay; 0 drops vision there
    exit_layer:
        first layer without visual tokens; None: they stay to the end
    seed:
        of the draw; prompts of equal length keep the same places
    """

    layer: int | None = None
    keep: int | None = None
    exit_layer: int | None = None
    seed: int = 0

    method: ClassVar[str] = "random"

    def __post_init__(self):
        missing = [key for key in ("layer", "keep") if getattr(self, key) is None]
        if missing:
            raise ValueError(f"method 'random' needs {' and '.join(map(repr, missing))} in the pruning config")
        for key in ("layer", "keep", "seed"):
            check_number(key, getattr(self, key), int, 0)
        if self.exit_layer is not None:
            check_number("exit_layer", self.exit_layer, int, self.layer + 1)

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when a boundary is not a layer of the model."""
        for key in ("layer", "exit_layer"):
            if (getattr(self, key) or 0) >= num_layers:
                raise ValueError(f"{key!r} is {getattr(self, key)}, but the model has {num_layers} layers")

    def start(self, num_layers: int) -> Policy:
        """Return the decision maker of one prompt."""
        return _Prompt(self)


class _Prompt(Policy):
    def __init__(self, config: RandomPruning):
        self.config = config

    def keep(self, layer: int, visual_tokens: int, measured: Measurement | None) -> np.ndarray | None:
        config = self.config
        if config.exit_layer is not None and layer + 1 == config.exit_layer:
            return np.zeros(visual_tokens, bool)
        if layer != config.layer:
            return None
        self.filter_layer = layer
        drawn = np.random.default_rng(config.seed).permutation(visual_tokens)[: config.keep]
        return np.isin(np.arange(visual_tokens), drawn)
