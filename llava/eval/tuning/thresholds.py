"""VisiPruner at a budget: which thresholds and boundaries to try, told from one unpruned pass over tuning questions.

What its settings cost depends on what it measures: `calibration` predicts the FLOPs of thousands of settings from the
influence of every layer, and those near the budget are asked for real. Of the best ones the number of tokens that stay
is then set to the budget as every method's is, by what asking shows it to cost.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from llava.eval.runner.totals import Totals
from llava.eval.tuning.candidates import EXITS, LAYER_THRESHOLDS, Candidate, Shallow, Space
from llava.model.pruning import PruningConfig
from llava.model.pruning.flops import DecoderShape
from llava.model.pruning.methods import Replay, VisiPruner

from .knobs import Knob

WINDOWS = (0.0, 0.02, 0.05, 0.09)
"""Shares of dense FLOPs below the budget that a predicted cost may lie, from one attempt to the next."""
LIKE = 6
"""One in so many candidates counts as like the best."""


def all_candidates(space: Space) -> list[Candidate]:
    """Return the settings to choose from: up to half of the layers shallow, masked as described, partly, or dense."""
    layers = space.shape.layers
    masked = [Shallow(count, visual) for count in range(1, layers // 2 + 1) for visual in ("remove", "dense")]
    return space.all(masked + [Shallow(count, None) for count in range(layers - 2)])


def token_knob(space: Space, one: Candidate) -> Knob:
    """Return a candidate's knob: how many tokens its L2 threshold leaves a prompt, from 1 to all, in even ratios."""

    def setting(x: float) -> PruningConfig:
        threshold = space.keeping(one.shallow, one.layer_threshold, space.share(1.0) ** x)
        return PruningConfig.from_dict(replace(one, tokens_threshold=threshold).settings("absolute"))

    return Knob("", setting)


def near(found: Iterable[Candidate], budget: float, attempt: int, floor: float = 0.0) -> list[Candidate]:
    """Return the candidates whose predicted cost lies in a window below the budget.

    attempt: which of the windows, from 0: a prediction can be too low, since exits are estimated
    floor: what a prompt costs without visual tokens, where the budget is of their FLOPs alone, as a share of all
    """
    low, high = (budget - WINDOWS[attempt + 1], budget - WINDOWS[attempt])
    return [one for one in found if low < (one.flops - floor) / (1 - floor) <= high]


def spread(found: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return `count` of them, as unlike as can be: the dearest, then always the one farthest from all taken."""
    if not found:
        return []
    places = [_place(one) for one in found]
    taken = [max(range(len(found)), key=lambda index: found[index].flops)]
    while len(taken) < min(count, len(found)):
        distance = [min(math.dist(place, places[other]) for other in taken) for place in places]
        taken.append(max(range(len(found)), key=distance.__getitem__))
    return [found[index] for index in taken]


def around(best: Candidate, found: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return `count` that are like the best, and unlike each other: the nearest hardly do anything else."""
    ordered = sorted(found, key=lambda one: math.dist(_place(one), _place(best)))
    return spread(ordered[: max(count, len(ordered) // LIKE)], count)


def _place(one: Candidate) -> tuple[float, ...]:
    """Where a setting lies: how shallow layers attend, where it filters and exits, what stays; axes about one long."""
    kind = {"remove": 0.0, "dense": 0.5, None: 1.0}[one.shallow.visual]
    return (
        kind,
        min(one.shallow.layers, 6) / 6,
        LAYER_THRESHOLDS.index(one.layer_threshold) / len(LAYER_THRESHOLDS),
        math.log10(max(one.tokens_threshold, 1e-6)) / 2,
        EXITS.index(one.exit) / len(EXITS),
    )


def plan_knobs(config: VisiPruner, totals: Totals, shape: DecoderShape, visual_tokens: int) -> list[Knob]:
    """Return VisiPruner's schedule as a fixed plan: what it is worth without choosing tokens, nor layers by prompt.

    config: resolved; totals: of prompts that it pruned. Filter and exit layer are the medians of what it chose, earlier
    ones follow for where that would be too dear; the tokens that stay are spread evenly, and their number is the knob.
    """
    filters, exits = ([*layers.elements()] for layers in (totals.filter_layers, totals.exit_layers))
    chosen = [layer for layer in filters if layer is not None]
    if not chosen:
        return []
    late = [shape.layers if layer is None else layer for layer in exits]
    leave = int(statistics.median_high(late))
    rules = [config.attention(layer) for layer in range(shape.layers)]
    common = {
        "rules": tuple((rule.text, rule.visual, rule.sink) for rule in rules),
        "kv": tuple(config.cached(layer).visual for layer in range(shape.layers)),
    }

    def knob(layer: int) -> Knob:
        exit_layer = max(leave, layer + 2)

        def setting(x: float) -> PruningConfig:
            cuts = [(layer, round(x * visual_tokens))]
            return Replay(cuts=cuts + ([(exit_layer - 1, 0)] if exit_layer < shape.layers else []), **common)

        return Knob(f"after layer {layer}, none from {exit_layer}", setting)

    return [knob(layer) for layer in range(int(statistics.median_low(chosen)), -1, -1)]
