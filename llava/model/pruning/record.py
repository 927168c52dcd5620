"""`recorder`: measure a probe at every layer of every prompt, dense or while another method prunes.

What an analysis measures is a `Probe`, as a method has it: computed on the device from the query, key and value states
of one layer, fetched once. So it works in every family that can be pruned, sees what a pruned layer ran with, and is
undone with the session.

    with prune(model, recorder(Influence())) as session:
        model(**inputs)
    session.policies[0].memory["recorded"].measured[5]      # of the first prompt, after layer 5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from .method import Method, PromptState, Selection
from .methods import NoPruning
from .probes import LayerStates, Probe


@dataclass(eq=False)
class Recorded:
    """The measurements of one prompt.

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
        self.reads_attention = any(probe.reads_attention for probe in probes)
        self.ahead = any(probe.ahead for probe in probes)

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


def recorder(ask: Probe, base: Method | None = None) -> Method:
    """Return a config that prunes as `base` does (None: not at all) and measures `ask` after every layer.

    `session.policies[i].memory["recorded"]` is the `Recorded` of prompt i. To everyone else it looks like `base`.
    """
    base = NoPruning() if base is None else base

    class Recording(type(base)):
        def probe(self, layer: int, prompt: PromptState) -> Probe | None:
            theirs = prompt.memory["theirs"] = super().probe(layer, prompt)
            if layer < 0 or theirs == ask:
                return theirs
            return ask if theirs is None else Several(ask, theirs)

        def select(self, layer: int, prompt: PromptState, measured: Any) -> np.ndarray | Selection | None:
            if layer < 0:
                prompt.memory["recorded"] = Recorded(prompt.positions)
                return super().select(layer, prompt, measured)
            own, theirs, recorded = measured, prompt.memory["theirs"], prompt.memory["recorded"]
            if theirs is None:
                measured = None
            elif theirs != ask:
                own, measured = measured
            recorded.measured[layer], recorded.present[layer] = own, prompt.positions
            return super().select(layer, prompt, measured)

    Recording.method = base.method
    return Recording(**{one.name: getattr(base, one.name) for one in fields(base)})
