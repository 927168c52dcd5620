"""The same decisions without measuring: what probing costs is a method's time less that of its replayed traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava.model.pruning import AttentionRule, KVRule, Method, PromptState, PruningTrace, Selection
from llava.model.pruning.methods import Replay


@dataclass(frozen=True)
class Replayed(Method):
    """Each prompt of a batch by a plan of its own; good for prefills of that batch, whose prompts come in order.

    Attention and cache rules belong to a config, not to a prompt: all plans have the same.
    """

    plans: tuple[Any, ...] = ()

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when a plan does not fit a decoder of `num_layers` layers."""
        for plan in self.plans:
            plan.check_layers(num_layers)

    def attention(self, layer: int) -> AttentionRule:
        """As recorded."""
        return self.plans[0].attention(layer)

    def cached(self, layer: int) -> KVRule:
        """As recorded."""
        return self.plans[0].cached(layer)

    def select(self, layer: int, prompt: PromptState, measured: None) -> np.ndarray | Selection | None:
        """As the prompt's own plan says."""
        return self.plans[prompt.number % len(self.plans)].select(layer, prompt, measured)


def replayed(traces: Sequence[PruningTrace]) -> Replayed:
    """Return the config that repeats the traces of a batch."""
    return Replayed(plans=tuple(Replay(trace=trace.to_dict()) for trace in traces))


def measures(config: Method) -> bool:
    """Whether a method measures anything, in its own stage or in the one before the decoder."""
    return any(type(stage).probe is not Method.probe for stage in config.stages)
