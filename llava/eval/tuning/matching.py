"""Setting a knob to a FLOPs budget: the most tokens whose cost is still within it, by bisection."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llava.model.pruning import PruningConfig

from .knobs import Knob

STEPS = 14
"""Bisections of [0, 1]: a decoder of any real width has no finer counts of tokens than 2⁻¹⁴ of a prompt."""


@dataclass(frozen=True)
class Matched:
    """A config within the budget: its prefill FLOPs as a share of dense, and what was fixed, in words."""

    config: PruningConfig
    share: float
    told: str


@dataclass(frozen=True)
class Absent:
    """Why a method has no config at a budget."""

    reason: str


class Counted:
    """`share(config)` with a memory, since a knob's neighbouring values often mean the same numbers of tokens."""

    def __init__(self, share: Callable[[PruningConfig], float]):
        self._share, self._known = share, {}

    def __call__(self, config: PruningConfig) -> float:
        """Return what `share` says of the config."""
        key = json.dumps(config.to_dict(), sort_keys=True)
        if key not in self._known:
            self._known[key] = self._share(config)
        return self._known[key]


def settle(knob: Knob, budget: float, share: Callable[[PruningConfig], float], steps: int = STEPS) -> Matched | None:
    """Return the knob's dearest config within the budget; None where even its cheapest is dearer.

    budget: share of dense prefill FLOPs; share: tells it of a config, never falling as the knob rises
    steps: bisections
    """
    counted = knob.counted or knob.setting
    low, found = 0.0, share(counted(0.0))
    if found > budget:
        return None
    high = 1.0
    whole = share(counted(high))
    if whole <= budget:
        return Matched(knob.setting(high), whole, knob.told)
    for _ in range(steps):
        middle = (low + high) / 2
        cost = share(counted(middle))
        if cost <= budget:
            low, found = middle, cost
        else:
            high = middle
    return Matched(knob.setting(low), found, knob.told)


def matched(
    knobs: Sequence[Knob], budget: float, share: Callable[[PruningConfig], float], most: int
) -> list[Matched] | Absent:
    """Return at most `most` of a method's knobs set to the budget, evenly spread over those that reach it."""
    floors = [share((knob.counted or knob.setting)(0.0)) for knob in knobs]
    reach = [knob for knob, floor in zip(knobs, floors, strict=True) if floor <= budget]
    if not reach:
        if not floors:
            return Absent("the decoder has too few layers for it")
        return Absent(f"its boldest setting still costs {100 * min(floors):.1f}% of dense")
    count = min(most, len(reach))
    places = [round(place * (len(reach) - 1) / max(count - 1, 1)) for place in range(count)]
    return [settle(reach[place], budget, share) for place in places]
