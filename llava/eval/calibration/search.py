"""The search: the boldest shallow stage by bisection, then the cheapest candidate that keeps the answers.

Candidates are told apart by their predicted FLOPs. The search halves the stretch between the dearest that failed and
the cheapest that passed; a failure rules out everything that is bolder in each setting, a pass everything dearer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .candidates import Candidate, Shallow, shallow_settings

Try = Callable[[Mapping[str, Any]], dict[str, Any]]
NARROW = 0.01
"""Share of dense FLOPs below which the stretch is not halved further."""


def boldest_shallow(layers: int, visual: str, attempt: Try) -> int:
    """Return how many shallow layers the answers bear, by bisection; 0 for none. The last two layers stay dense."""
    low, high = 0, layers - 1
    while high - low > 1:
        middle = (low + high) // 2
        if attempt(shallow_settings(Shallow(middle, visual)))["passed"]:
            low = middle
        else:
            high = middle
    return low


def shallow_stages(layers: int, attempt: Try) -> list[Shallow]:
    """Return the shallow stages to combine with the rest: masked up to the boldest that the answers bear, and dense."""
    removed = boldest_shallow(layers, "remove", attempt)
    masked = [Shallow(count, "remove") for count in range(1, removed + 1)]
    return masked + [Shallow(count, None) for count in range(layers - 2)]


def with_shallow(best: Candidate, scale: str, attempt: Try) -> dict[str, Any]:
    """Return the settings of the best candidate, its shallow layers masked as well where the answers bear that.

    First without visual self-attention in them, then with it, which saves no linear layer but their visual cache.
    """
    if best.shallow.visual is None and best.shallow.layers > 0:
        for visual in ("remove", "dense"):
            settings = replace(best, shallow=Shallow(best.shallow.layers, visual)).settings(scale)
            if attempt(settings)["passed"]:
                return settings
    return best.settings(scale)


def cheapest(
    found: Sequence[Candidate],
    scale: str,
    attempt: Try,
    trials: int,
    tell: Callable[[Candidate, dict[str, Any]], None] = lambda candidate, row: None,
) -> tuple[Candidate, dict[str, Any]] | None:
    """Return the cheapest candidate that passes, and its trial; None where none of those tried does.

    `attempt` runs at most `trials` configs; `tell` hears of each.
    """
    open_ = sorted(found, key=lambda one: one.flops)
    best: tuple[Candidate, dict[str, Any]] | None = None
    low = open_[0].flops if open_ else 0.0
    for _ in range(trials):
        if not open_:
            break
        high = best[1]["flops"] if best else open_[-1].flops
        if high - low < NARROW:
            low = open_[0].flops
        target = (low + high) / 2
        candidate = min(open_, key=lambda one: abs(one.flops - target))
        row = attempt(candidate.settings(scale))
        tell(candidate, row)
        if row["passed"]:
            if best is None or row["flops"] < best[1]["flops"]:
                best = candidate, row
            open_ = [one for one in open_ if one.flops < min(candidate.flops, best[1]["flops"])]
        else:
            low = max(low, candidate.flops)
            open_ = [one for one in open_ if not one.at_least_as_bold(candidate)]
    return best
