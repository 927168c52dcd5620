"""`Recorder`: measure something at every layer of every prompt, while another method prunes or nothing does.

What an analysis measures is a `Probe`, as a method has it: computed on the device from the query, key and value states
of one layer, fetched once. So it works in every family that can be pruned, sees what a pruned layer ran with, and is
undone with the session.

    with prune(model, Recorder(Influence())) as session:
        model(**inputs)
    session.policies[0].memory["recorded"].measured[5]      # of the first prompt, after layer 5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .method import AttentionRule, KVRule, Method, PromptState, Selection
from .methods import NoPruning
from .probes import LayerStates, Probe


@dataclass(eq=False)
class Recorded:
    """What was measured of one prompt.

    visual:
        int [V], positions of its visual tokens as they were given to the decoder
    measured:
        the probe's result at every layer that had visual tokens, by layer
    present:
        int [V_l], positions of the visual tokens that each of these layers ran with, by layer
    """

    visual: np.ndarray
    measured: dict[int, Any] = field(default_factory=dict)
    present: dict[int, np.ndarray] = field(default_factory=dict)


class Several(Probe):
    """More than one probe of the same prompt; results are tuples. Serves one layer."""

    def __init__(self, *probes: Probe):
        self.probes = probes

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> Sequence[torch.Tensor]:
        """Return the tensors of all probes, one after the other."""
        measured = [probe.measure(states, prompts) for probe in self.probes]
        self._ends = np.cumsum([len(tensors) for tensors in measured])[:-1]
        return [tensor for tensors in measured for tensor in tensors]

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[tuple]:
        """Return, for each prompt, a tuple with the result of each probe."""
        bounds = [0, *self._ends, len(arrays)]
        parts = [arrays[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
        results = [probe.results(states, prompts, part) for probe, part in zip(self.probes, parts, strict=True)]
        return list(zip(*results, strict=True))


@dataclass(frozen=True)
class Recorder(Method):
    """Run `base`, and `ask` after every layer; `PromptState.memory["recorded"]` is the `Recorded` of a prompt.

    ask:
        what to measure after every layer
    base:
        what prunes on the way
    """

    ask: Any
    base: Any = field(default_factory=NoPruning)

    def __post_init__(self):
        object.__setattr__(self, "base", Method.of(self.base))
        object.__setattr__(self, "before", self.base.before)
        super().__post_init__()

    @property
    def positions(self) -> str:
        return self.base.positions

    @property
    def reads_vision(self) -> bool:
        return self.base.reads_vision

    def to_dict(self) -> dict[str, Any]:
        return self.base.to_dict()

    def resolved(self, num_layers: int) -> Recorder:
        return Recorder(self.ask, self.base.resolved(num_layers))

    def check_layers(self, num_layers: int) -> None:
        self.base.check_layers(num_layers)

    def attention(self, layer: int) -> AttentionRule:
        return self.base.attention(layer)

    def cached(self, layer: int) -> KVRule:
        return self.base.cached(layer)

    def unread(self, layer: int, prompt: PromptState) -> np.ndarray | None:
        return self.base.unread(layer, prompt)

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        theirs = prompt.memory["theirs"] = self.base.probe(layer, prompt)
        if layer < 0 or theirs == self.ask:
            return theirs
        return self.ask if theirs is None else Several(self.ask, theirs)

    def select(self, layer: int, prompt: PromptState, measured: Any) -> np.ndarray | Selection | None:
        if layer < 0:
            prompt.memory["recorded"] = Recorded(prompt.positions)
            return self.base.select(layer, prompt, measured)
        own, theirs = measured, prompt.memory["theirs"]
        if theirs is None:
            measured = None
        elif theirs != self.ask:
            own, measured = measured
        recorded = prompt.memory["recorded"]
        recorded.measured[layer], recorded.present[layer] = own, prompt.positions
        return self.base.select(layer, prompt, measured)
