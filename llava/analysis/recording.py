"""`watch`: read prompts through the pruning engine and measure something at every layer, with or without pruning.

What an analysis measures is a `Probe`, as a method's policy has it: computed on the device from the query, key and
value states of one layer, fetched once. So it works in every family that can be pruned, sees what a pruned layer ran
with, and is undone with the session. Without a config nothing is pruned and every layer attends to everything.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from llava.model.pruning.config import PruningConfig
from llava.model.pruning.methods import NoPruning
from llava.model.pruning.policy import AttentionRule, KVRule, Policy, Selection
from llava.model.pruning.probes import LayerStates, Probe
from llava.model.pruning.session import prune
from llava.model.pruning.trace import PruningTrace


@dataclass(frozen=True, eq=False)
class Watched:
    """What was measured of one prompt.

    visual:
        int [V], positions of its visual tokens as they entered the decoder
    measured:
        the probe's result at every layer that had visual tokens, by layer
    present:
        int [V_l], positions of the visual tokens that each of these layers ran with
    trace:
        what the engine did with the prompt
    """

    visual: np.ndarray
    measured: Mapping[int, Any]
    present: Mapping[int, np.ndarray]
    trace: PruningTrace


def watch(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    probe: Probe,
    config: PruningConfig | Mapping[str, Any] | str | None = None,
    visual_mask: torch.Tensor | None = None,
) -> list[Watched]:
    """Read a batch of prompts once and run `probe` after every layer; one result a prompt.

    inputs:
        keywords of the model's `generate` (`Inputs.collate`) or `forward`
    config:
        prune on the way; None: do not
    visual_mask:
        for a bare decoder, as `prune` takes it

    Raises:
        ValueError: what `prune` refuses, and a prompt without visual tokens, of which nothing can be measured.

    """
    base = NoPruning() if config is None else PruningConfig.of(config)
    watching = _Watching(before=base.before, base=base, ask=probe)
    with prune(model, watching, visual_mask) as session:
        read(model, inputs)
    empty = [number for number, trace in enumerate(session.traces) if not trace.visual_tokens]
    if empty:
        raise ValueError(f"prompt {empty[0]} of the batch has no visual tokens: give it an image, or leave it out")
    prompts = session.config.prompts
    return [
        Watched(prompt.visual, prompt.measured, prompt.present, trace)
        for prompt, trace in zip(prompts[-len(session.traces) :], session.traces, strict=True)
    ]


@torch.no_grad()
def read(model: torch.nn.Module, inputs: Mapping[str, Any]) -> None:
    """Run one forward over the prompts for what it leaves behind: no cache, the last logits only.

    `inputs` are keywords of the model's `generate` or `forward`.
    """
    accepted = inspect.signature(type(model).forward).parameters
    settings = {"use_cache": False, **({"logits_to_keep": 1} if "logits_to_keep" in accepted else {})}
    model(**{"input_ids" if name == "inputs" else name: value for name, value in inputs.items()}, **settings)


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
        """Return, for each prompt, a tuple of one result a probe."""
        bounds = [0, *self._ends, len(arrays)]
        parts = [arrays[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
        found = [probe.results(states, prompts, part) for probe, part in zip(self.probes, parts, strict=True)]
        return list(zip(*found, strict=True))


@dataclass(frozen=True)
class _Watching(PruningConfig):
    """Another config, and a probe of the watcher's own at every layer."""

    base: PruningConfig
    ask: Probe
    prompts: list[_Prompt] = field(default_factory=list, compare=False)

    method: ClassVar[str] = "watched"

    @property
    def positions(self) -> str:
        return self.base.positions

    @property
    def reads_vision(self) -> bool:
        return self.base.reads_vision

    def resolved(self, num_layers: int) -> _Watching:
        return _Watching(before=self.before, base=self.base.resolved(num_layers), ask=self.ask, prompts=self.prompts)

    def check_layers(self, num_layers: int) -> None:
        self.base.check_layers(num_layers)

    def attention(self, layer: int) -> AttentionRule:
        return self.base.attention(layer)

    def cached(self, layer: int) -> KVRule:
        return self.base.cached(layer)

    def start(self, num_layers: int) -> Policy:
        self.prompts.append(_Prompt(self.base.start(num_layers), self.ask))
        return self.prompts[-1]


class _Prompt(Policy):
    """The base config's policy for one prompt, which sees what it asked for and decides; the rest is written down."""

    def __init__(self, policy: Policy, ask: Probe):
        self.policy, self.ask = policy, ask
        self.theirs: Probe | None = None
        self.visual = np.empty(0, int)
        self.measured: dict[int, Any] = {}
        self.present: dict[int, np.ndarray] = {}

    @property
    def filter_layer(self) -> int | None:
        return self.policy.filter_layer

    def probe(self, layer: int) -> Probe | None:
        theirs = self.theirs = self.policy.probe(layer)
        if layer < 0 or theirs == self.ask:
            return theirs
        return self.ask if theirs is None else Several(self.ask, theirs)

    def keep(self, layer: int, positions: np.ndarray, measured: Any) -> np.ndarray | Selection | None:
        if layer < 0:
            self.visual = positions
            return self.policy.keep(layer, positions, measured)
        own = measured
        if self.theirs is None:
            measured = None
        elif self.theirs != self.ask:
            own, measured = measured
        self.measured[layer], self.present[layer] = own, positions
        return self.policy.keep(layer, positions, measured)
