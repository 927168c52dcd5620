"""Candidates: settings of visipruner, and the FLOPs of each, predicted from one unpruned pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava.model.pruning.flops import DecoderShape

from .recording import Recording

LAYER_THRESHOLDS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
"""Cautious first: the higher, the earlier a prompt filters."""
KEPT = (300, 200, 150, 110, 80, 60, 45, 34, 26, 20, 16, 13, 10, 8, 6, 5, 4, 3, 2, 1)
"""Mean numbers of tokens whose thresholds are tried."""
Exit = tuple[float, int] | None
"""(exit_threshold, exit_patience); None: visual tokens stay to the end."""
EXITS = (
    *((0.95, 1), (0.98, 1), (0.98, 2), (0.99, 1), (0.99, 2), (0.995, 1), (0.995, 2)),
    *((0.998, 1), (0.998, 2), (0.999, 1), (0.999, 2), (0.9999, 2), None),
)


@dataclass(frozen=True)
class Shallow:
    """The shallow stage: number of `layers`, and how their visual rows attend; None: dense."""

    layers: int
    visual: str | None = "remove"


@dataclass(frozen=True)
class Candidate:
    """One setting of visipruner, and its predicted prefill FLOPs as a share of dense (all tokens)."""

    shallow: Shallow
    layer_threshold: float
    tokens_threshold: float
    exit: Exit
    flops: float

    def settings(self, scale: str) -> dict[str, Any]:
        """Return the pruning config."""
        mode = ["shallow"] if self.shallow.visual else []
        config = {
            "mode": [*mode, "middle", *(["deep"] if self.exit else [])],
            "shallow_mid_layer": self.shallow.layers,
            "layer_threshold": self.layer_threshold,
            "tokens_threshold": self.tokens_threshold,
        }
        if self.shallow.visual == "dense":
            config["shallow_visual"] = "dense"
        if scale != "absolute":
            config["tokens_scale"] = scale
        if self.exit:
            config |= {"exit_threshold": self.exit[0], "exit_patience": self.exit[1]}
        return config


class Space:
    """All candidates for a model, with predicted costs on the recorded prompts; scale: their `tokens_scale`."""

    def __init__(self, recording: Recording, shape: DecoderShape, scale: str):
        self.recording, self.shape, self.scale = recording.in_scale(scale), shape, scale
        self._given = np.array([one.shape[1] for one in recording.cosine])
        self._dense = shape.layers * float(np.sum(shape.layer_flops(recording.tokens)))

    def candidate(
        self, shallow: Shallow, layer_threshold: float, tokens_threshold: float, exit: Exit = None
    ) -> Candidate:
        """Return a candidate with its FLOPs: exact where `exit` is None, else an estimate."""
        ((candidate, _),) = self._with_exits(shallow, layer_threshold, tokens_threshold, (exit,))
        return candidate

    def keeping(self, shallow: Shallow, layer_threshold: float, count: float) -> float:
        """Return the L2 threshold, to three digits, that keeps `count` tokens per prompt on average; 0 for all."""
        filters = self.recording.filter_layers(shallow.layers, layer_threshold)
        chosen = [l2[layer] for l2, layer in zip(self.recording.l2, filters, strict=True) if layer < len(l2)]
        descending = np.sort(np.concatenate(chosen))[::-1] if chosen else np.empty(0)
        place = round(count * len(chosen))
        return float(f"{descending[place]:.3g}") if place < len(descending) else 0.0

    def share(self, part: float) -> float:
        """Return the mean number of tokens that a share of each prompt's visual tokens amounts to."""
        return part * float(self._given.mean())

    def all(self, shallows: Sequence[Shallow]) -> list[Candidate]:
        """Return all candidates, cheapest first, without those that prune every prompt like an earlier one."""
        candidates: dict[tuple, Candidate] = {}
        filtered: set[tuple] = set()
        for shallow in shallows:
            rows = shallow if shallow.visual else None  # where they run dense their number is where probing starts
            for threshold in LAYER_THRESHOLDS:
                filters = self.recording.filter_layers(shallow.layers, threshold)
                if (filters >= self.shape.layers - 1).all() or (rows, filters.tobytes()) in filtered:
                    continue
                filtered.add((rows, filters.tobytes()))
                least = [self.keeping(shallow, threshold, count) for count in KEPT]
                for kept in dict.fromkeys(filter(None, least)):
                    for candidate, plan in self._with_exits(shallow, threshold, kept, EXITS):
                        candidates.setdefault((rows, plan.tobytes()), candidate)
        return sorted(candidates.values(), key=lambda one: one.flops)

    def _with_exits(
        self, shallow: Shallow, layer_threshold: float, tokens_threshold: float, exits: Sequence[Exit]
    ) -> Iterator[tuple[Candidate, np.ndarray]]:
        """Yield a candidate for each exit, and the visual tokens that enter each layer, int [prompts, layers]."""
        filters = self.recording.filter_layers(shallow.layers, layer_threshold)
        kept, votes = _kept(self.recording, filters, tokens_threshold)
        for exit in exits:
            plan = _plan(filters, kept, votes, self._given, exit)
            flops = flops_of(plan, self.recording.tokens - self._given, self.shape, shallow)
            yield Candidate(shallow, layer_threshold, tokens_threshold, exit, flops / self._dense), plan


def _kept(recording: Recording, filters: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how many tokens each prompt keeps, int [prompts], and the lowest cosine of those in each layer."""
    kept = np.zeros(len(filters), int)
    votes = np.full((len(filters), recording.cosine[0].shape[0]), np.inf)
    for prompt, (cosine, l2, layer) in enumerate(zip(recording.cosine, recording.l2, filters, strict=True)):
        if layer < len(l2):
            mask = l2[layer] > threshold
            kept[prompt] = mask.sum()
            votes[prompt] = cosine[:, mask].min(1, initial=np.inf)
    return kept, votes


def _plan(filters: np.ndarray, kept: np.ndarray, votes: np.ndarray, given: np.ndarray, exit: Exit) -> np.ndarray:
    """Return the visual tokens that enter each layer, int [prompts, layers]."""
    layers = votes.shape[1]
    number = np.arange(layers)[None]
    plan = np.where(number <= filters[:, None], given[:, None], kept[:, None])
    if exit is None:
        return plan
    threshold, patience = exit
    agreed = (votes >= threshold) & (number > filters[:, None])
    run = np.zeros(len(filters), int)
    gone = np.zeros(len(filters), bool)
    for layer in range(layers):
        plan[gone, layer] = 0
        run = np.where(agreed[:, layer], run + 1, 0)
        gone |= run == patience
    return plan


def flops_of(plan: np.ndarray, text: np.ndarray, shape: DecoderShape, shallow: Shallow) -> float:
    """Return the prefill's multiply-adds over all tokens, as `PruningTrace.flops("all")` counts them.

    plan: visual tokens that enter each layer, int [prompts, layers]; text: other tokens, int [prompts]
    """
    total = 0.0
    for layer in range(plan.shape[1]):
        tokens = plan[:, layer] + text
        skipped = layer < shallow.layers and (layer > 0 and shallow.visual == "remove")
        total += float(np.sum(shape.layer_flops(tokens, text * tokens if skipped else tokens * tokens)))
    return total
