"""Candidates: settings of visipruner, and the FLOPs that each would cost, told from one unpruned pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava.model.pruning.flops import DecoderShape

from .watching import Watched

LAYER_THRESHOLDS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
KEPT = (1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200, 300)
"""Mean numbers of tokens whose thresholds are tried."""
EXITS = ((0.98, 1), (0.99, 1), (0.99, 2), (0.999, 1), (0.999, 2), (0.9999, 2), None)
"""(exit_threshold, exit_patience), boldest first; None: vision stays to the end."""


@dataclass(frozen=True)
class Shallow:
    """What the shallow layers do: `layers` of them, and how their visual rows read; None: they run dense."""

    layers: int
    visual: str | None = "remove"


@dataclass(frozen=True)
class Candidate:
    """One setting of visipruner, and its predicted prefill FLOPs as a share of dense (all tokens)."""

    shallow: Shallow
    layer_threshold: float
    tokens_threshold: float
    exit: tuple[float, int] | None
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

    def at_least_as_bold(self, other: Candidate) -> bool:
        """Whether every setting drops as much as the other's, or more, given the same shallow layers."""
        return (
            self.shallow == other.shallow
            and self.layer_threshold >= other.layer_threshold
            and self.tokens_threshold >= other.tokens_threshold
            and EXITS.index(self.exit) <= EXITS.index(other.exit)
        )


def shallow_settings(shallow: Shallow) -> dict[str, Any]:
    """Return the config of the shallow stage alone."""
    return {"mode": ["shallow"], "shallow_mid_layer": shallow.layers, "shallow_visual": shallow.visual}


def candidates(watched: Watched, shape: DecoderShape, shallows: Sequence[Shallow]) -> list[Candidate]:
    """Return all candidates, cheapest first; of those that would do the same to every prompt only the first."""
    found: dict[tuple, Candidate] = {}
    seen: set[tuple] = set()
    for shallow in shallows:
        rows = shallow if shallow.visual else None  # where shallow layers run dense their number is a start of probing
        for candidate, plan in _of(watched, shape, shallow, rows, seen):
            found.setdefault((rows, plan.tobytes()), candidate)
    return sorted(found.values(), key=lambda one: one.flops)


def _of(
    watched: Watched, shape: DecoderShape, shallow: Shallow, rows: Shallow | None, seen: set[tuple]
) -> Iterator[tuple[Candidate, np.ndarray]]:
    layers, given = shape.layers, np.array([one.shape[1] for one in watched.cosine])
    lowest = np.array([one.min(1) for one in watched.cosine])  # [prompts, layers]
    lowest[:, : shallow.layers] = np.inf
    dense = layers * float(np.sum(shape.layer_flops(watched.tokens)))
    for threshold in LAYER_THRESHOLDS:
        below = lowest < threshold
        filters = np.where(below.any(1), below.argmax(1), layers)  # [prompts], `layers` for none
        if (filters >= layers - 1).all() or (rows, filters.tobytes()) in seen:
            continue
        seen.add((rows, filters.tobytes()))
        for tokens_threshold in _thresholds(watched, filters):
            kept, votes = _kept(watched, filters, tokens_threshold)
            for exit in EXITS:
                plan = _plan(filters, kept, votes, given, exit)
                flops = _flops(plan, watched.tokens - given, shape, shallow)
                yield Candidate(shallow, threshold, tokens_threshold, exit, flops / dense), plan


def _thresholds(watched: Watched, filters: np.ndarray) -> list[float]:
    """Return L2 thresholds that keep the mean numbers in `KEPT` at the prompts' filter layers, to three digits."""
    chosen = [l2[layer] for l2, layer in zip(watched.l2, filters, strict=True) if layer < len(l2)]
    ordered = np.sort(np.concatenate(chosen))[::-1]
    places = [count * len(chosen) for count in KEPT if count * len(chosen) < len(ordered)]
    return list(dict.fromkeys(float(f"{ordered[place]:.3g}") for place in places))


def _kept(watched: Watched, filters: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how many tokens each prompt keeps, int [prompts], and the lowest cosine of those in each layer."""
    kept = np.zeros(len(filters), int)
    votes = np.full((len(filters), watched.cosine[0].shape[0]), np.inf)
    for prompt, (cosine, l2, layer) in enumerate(zip(watched.cosine, watched.l2, filters, strict=True)):
        if layer < len(l2):
            mask = l2[layer] > threshold
            kept[prompt] = mask.sum()
            votes[prompt] = cosine[:, mask].min(1, initial=np.inf)
    return kept, votes


def _plan(
    filters: np.ndarray, kept: np.ndarray, votes: np.ndarray, given: np.ndarray, exit: tuple[float, int] | None
) -> np.ndarray:
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


def _flops(plan: np.ndarray, text: np.ndarray, shape: DecoderShape, shallow: Shallow) -> float:
    """Return the prefill's multiply-adds over all tokens, as `PruningTrace.flops("all")` counts them."""
    total = 0.0
    for layer in range(plan.shape[1]):
        tokens = plan[:, layer] + text
        skipped = layer < shallow.layers and (layer > 0 and shallow.visual == "remove")
        pairs = text * tokens if skipped else tokens * tokens
        total += float(np.sum(shape.layer_flops(tokens, pairs)))
    return total
