"""VisiPruner at a budget: thresholds and boundaries to try, predicted from one dense pass.

Its cost depends on what it measures: `Space` predicts the FLOPs of thousands of settings from the influence in every
layer, and those near the budget are run. The best ones are then set to the budget by the number of tokens kept, like
every method, at measured cost.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from llava.eval.runner.costs import Costs
from llava.model.pruning import PruningConfig
from llava.model.pruning.flops import DecoderShape
from llava.model.pruning.methods import Replay, VisiPruner

from .candidates import EXITS, LAYER_THRESHOLDS, Candidate, Shallow, Space

WINDOWS = (0.0, 0.02, 0.05, 0.09)
"""Shares of dense FLOPs below the budget that a predicted cost may lie, from one attempt to the next."""
ALIKE = 6
"""One in so many candidates counts as similar to the best."""


def all_candidates(space: Space) -> list[Candidate]:
    """Return the settings to choose from: up to half of the layers shallow, masked as described, partly, or dense."""
    layers = space.shape.layers
    masked = [Shallow(count, visual) for count in range(1, layers // 2 + 1) for visual in ("remove", "dense")]
    return space.all(masked + [Shallow(count, None) for count in range(layers - 2)])


def by_tokens(space: Space, one: Candidate) -> Callable[[float], PruningConfig]:
    """Return a candidate's config as a function of the tokens that stay: 1 (at 0) to all (at 1), in even ratios."""

    def at(x: float) -> PruningConfig:
        threshold = space.keeping(one.shallow, one.layer_threshold, space.share(1.0) ** x)
        return PruningConfig.from_dict(replace(one, tokens_threshold=threshold).settings("absolute"))

    return at


def near(candidates: Iterable[Candidate], budget: float, attempt: int, floor: float = 0.0) -> list[Candidate]:
    """Return the candidates whose predicted cost lies in a window below the budget.

    attempt: which of the windows, from 0: a prediction can be too low, since exits are estimated
    floor: cost of a prompt without visual tokens, as a share of all, where the budget is of visual FLOPs alone
    """
    low, high = (budget - WINDOWS[attempt + 1], budget - WINDOWS[attempt])
    return [one for one in candidates if low < (one.flops - floor) / (1 - floor) <= high]


def spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return `count` diverse candidates: the most expensive, then by farthest-point sampling."""
    if not candidates:
        return []
    places = [_place(one) for one in candidates]
    taken = [max(range(len(candidates)), key=lambda index: candidates[index].flops)]
    while len(taken) < min(count, len(candidates)):
        distance = [min(math.dist(place, places[other]) for other in taken) for place in places]
        taken.append(max(range(len(candidates)), key=distance.__getitem__))
    return [candidates[index] for index in taken]


def around(best: Candidate, candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return `count` candidates close to the best but different from each other."""
    ordered = sorted(candidates, key=lambda one: math.dist(_place(one), _place(best)))
    return spread(ordered[: max(count, len(ordered) // ALIKE)], count)


def _place(one: Candidate) -> tuple[float, ...]:
    """Coordinates of a setting, each axis about 1 long."""
    kind = {"remove": 0.0, "dense": 0.5, None: 1.0}[one.shallow.visual]
    return (
        kind,
        min(one.shallow.layers, 6) / 6,
        LAYER_THRESHOLDS.index(one.layer_threshold) / len(LAYER_THRESHOLDS),
        math.log10(max(one.tokens_threshold, 1e-6)) / 2,
        EXITS.index(one.exit) / len(EXITS),
    )


def plans(config: VisiPruner, costs: Costs, shape: DecoderShape, visual_tokens: int) -> list[Replay]:
    """Return VisiPruner's schedule as fixed plans: neither tokens nor layers are chosen per prompt.

    config: resolved; costs: of prompts that it pruned. Filter and exit layer are the medians of its decisions; plans
    with earlier filter layers follow, in case the first is too expensive. `with_budget` sets their tokens.
    """
    filters, exits = ([*layers.elements()] for layers in (costs.filter_layers, costs.exit_layers))
    chosen = [layer for layer in filters if layer is not None]
    if not chosen:
        return []
    leave = int(statistics.median_high([shape.layers if layer is None else layer for layer in exits]))
    rules = [config.attention(layer) for layer in range(shape.layers)]
    common = {
        "rules": tuple((rule.text, rule.visual, rule.sink) for rule in rules),
        "kv": tuple(config.cached(layer).visual for layer in range(shape.layers)),
    }

    def plan(layer: int) -> Replay:
        exit_layer = max(leave, layer + 2)
        last = [(exit_layer - 1, 0)] if exit_layer < shape.layers else []
        return Replay(cuts=[(layer, visual_tokens), *last], **common)

    return [plan(layer) for layer in range(int(statistics.median_low(chosen)), -1, -1)]
