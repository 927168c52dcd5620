"""The search for thresholds: stage by stage, the most aggressive passing setting of each by bisection.

1. Where prompts may filter. With a quarter of the tokens kept and shallow layers dense, the earliest layer at which all
   may do so; then, for every earlier start of probing, the highest `layer_threshold` that passes: a staircase, since an
   earlier start needs a lower threshold. Steps that would not be cheaper than earlier ones are not tried.
2. On each step, the one that might become cheapest first: whether the layers before it may be masked, then how few
   tokens are enough, then how early the exit may come. A step that would not beat the best even with one token and the
   earliest exit is left out.
3. From the best, single settings are made more aggressive, one after another, until none passes: agreement is not
   strictly monotonic in the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from .candidates import EXITS, KEPT, LAYER_THRESHOLDS, Candidate, Shallow, Space

T = TypeVar("T")
Try = Callable[[Mapping[str, Any]], dict[str, Any]]
"""A pruning config → its trial: "passed" and "flops", the share of dense."""
PARTS = (0.25, 0.75)
"""Share of the visual tokens that the staircase keeps; the second where none passes with the first."""


def last_passing(choices: Sequence[T], passes: Callable[[T], bool]) -> T | None:
    """Return the last choice that passes, by bisection; assumes that all up to it pass and all after it fail."""
    passing, failing = -1, len(choices)
    while failing - passing > 1:
        middle = (passing + failing) // 2
        if passes(choices[middle]):
            passing = middle
        else:
            failing = middle
    return None if passing < 0 else choices[passing]


class TrialRunner:
    """Runs trials of candidates, at most `trials` (then none passes); remembers the cheapest that passed."""

    def __init__(self, attempt: Try, scale: str, trials: int):
        self.attempt, self.scale, self.left = attempt, scale, trials
        self.best: tuple[Candidate, dict[str, Any]] | None = None

    def __call__(self, candidate: Candidate) -> bool:
        """Whether the candidate passes."""
        if not self.left:
            return False
        self.left -= 1
        row = self.attempt(candidate.settings(self.scale))
        if row["passed"] and (self.best is None or row["flops"] < self.best[1]["flops"]):
            self.best = candidate, row
        return row["passed"]


def staircase(space: Space, part: float, passes: Callable[[Candidate], bool]) -> list[Candidate]:
    """Return, with `part` of the tokens kept, the most aggressive passing `layer_threshold` per first probed layer."""

    def at(start: int, threshold: float) -> Candidate:
        shallow = Shallow(start, None)
        return space.candidate(shallow, threshold, space.keeping(shallow, threshold, space.share(part)))

    latest = space.shape.layers - 2
    places = reversed(range(len(LAYER_THRESHOLDS)))
    place = next((one for one in places if passes(at(latest, LAYER_THRESHOLDS[one]))), -1)
    if place < 0:
        return []
    earlier = [at(start, LAYER_THRESHOLDS[place]) for start in range(latest - 1, -1, -1)]
    steps = [last_passing(earlier, passes) or at(latest, LAYER_THRESHOLDS[place])]
    for start in range(steps[0].shallow.layers - 1, -1, -1):
        while place >= 0:
            candidate = at(start, LAYER_THRESHOLDS[place])
            if candidate.flops >= min(one.flops for one in steps):
                break  # lower thresholds cost more still, an earlier start less
            if passes(candidate):
                steps.append(candidate)
                break
            place -= 1
    return steps


def cheaper(space: Space, one: Candidate, part: str) -> list[Candidate]:
    """Return the candidates that differ from `one` in the field `part` and are predicted to cost less.

    The most expensive comes first. Other shallow stages are shorter ones.
    """
    values: Sequence[Any] = {
        "shallow": [Shallow(start, one.shallow.visual if start else None) for start in range(one.shallow.layers)],
        "layer_threshold": LAYER_THRESHOLDS,
        "tokens_threshold": [space.keeping(one.shallow, one.layer_threshold, count) for count in KEPT],
        "exit": EXITS,
    }[part]
    others = [_changed(space, one, **{part: value}) for value in dict.fromkeys(values)]
    return sorted((other for other in others if other.flops < one.flops), key=lambda other: -other.flops)


def _changed(space: Space, one: Candidate, **changes: Any) -> Candidate:
    new = replace(one, **changes)
    return space.candidate(new.shallow, new.layer_threshold, new.tokens_threshold, new.exit)


def cheapest(space: Space, attempt: Try, trials: int) -> tuple[Candidate, dict[str, Any]] | None:
    """Return the cheapest passing candidate and its trial; None if none passes.

    `attempt` is called at most `trials` times.
    """
    ask = TrialRunner(attempt, space.scale, trials)
    for part in PARTS:
        steps = staircase(space, part, ask)
        if steps:
            return _narrowed(space, steps, ask)
    return None


def _narrowed(space: Space, steps: Sequence[Candidate], ask: TrialRunner) -> tuple[Candidate, dict[str, Any]]:
    def bolder(one: Candidate, part: str) -> Candidate:
        return last_passing(cheaper(space, one, part), ask) or one

    def limit(one: Candidate) -> float:
        for part in ("tokens_threshold", "exit"):
            one = (cheaper(space, one, part) or [one])[-1]
        return one.flops

    def masked(one: Candidate) -> Candidate:
        return _changed(space, one, shallow=Shallow(one.shallow.layers, "remove")) if one.shallow.layers else one

    for step in sorted(steps, key=lambda one: limit(masked(one))):
        if limit(masked(step)) >= ask.best[1]["flops"]:
            break
        if step.shallow.layers and ask(masked(step)):
            step = masked(step)
        if limit(step) < ask.best[1]["flops"]:
            bolder(bolder(step, "tokens_threshold"), "exit")
    best = None
    while best is not ask.best[0]:
        best = ask.best[0]
        for part in ("layer_threshold", "tokens_threshold", "exit", "shallow"):
            bolder(ask.best[0], part)
    return ask.best


def with_shallow(best: Candidate, flops: float, scale: str, attempt: Try) -> dict[str, Any]:
    """Return the best candidate's settings, with masked shallow layers if that passes too.

    First without visual self-attention in them, then with it, which saves only their visual cache. Masked layers may
    move the filter layer: what costs more than `flops`, the candidate's own, is not taken. Two trials at most.
    """
    if best.shallow.visual is None and best.shallow.layers > 0:
        for visual in ("remove", "dense"):
            settings = replace(best, shallow=Shallow(best.shallow.layers, visual)).settings(scale)
            row = attempt(settings)
            if row["passed"] and row["flops"] <= flops:
                return settings
    return best.settings(scale)
