"""Plans made from a trace: tokens forced to stay or to go, and controls with as many tokens; all run by `replay`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from llava.model.pruning.methods import Replay

Positions = Collection[int]


def forced(trace: Mapping[str, Any], visual: Sequence[int], stay: Positions, go: Positions) -> dict[str, Any]:
    """Return the plan of a trace in which the tokens `stay` are in every layer and the tokens `go` in none.

    trace:
        `PruningTrace.to_dict()`, or the metadata of an answers file
    visual:
        positions of the prompt's visual tokens

    Raises:
        ValueError: a position that is no visual token or is forced both ways, or a trace that is none.

    """
    stay, go = set(stay), set(go)
    if wrong := sorted((stay | go) - set(visual)):
        raise ValueError(f"position {wrong[0]} is no visual token of this prompt: force visual tokens only")
    if both := sorted(stay & go):
        raise ValueError(f"position {both[0]} cannot stay and go")
    plan = Replay(trace=trace)
    cuts = dict(_positions(plan, visual))
    if go:
        cuts.setdefault(-1, list(visual))
    changed = [[layer, sorted((set(keep) | stay) - go)] for layer, keep in sorted(cuts.items())]
    return _replay(plan, changed)


def control(
    trace: Mapping[str, Any], visual: Sequence[int], kind: Literal["random", "downsampled"], seed: int = 0
) -> dict[str, Any]:
    """Return a plan with as many tokens in every layer as a trace has, chosen without looking at the prompt.

    kind:
        `random`: drawn with `seed`; `downsampled`: spread evenly over the visual tokens that are left

    Raises:
        ValueError: a trace that is none, or one in which nothing was pruned.

    """
    plan = Replay(trace=trace)
    if not plan.cuts:
        raise ValueError("nothing was pruned from this prompt: a control needs as many tokens as a pruned run")
    if kind == "downsampled":
        return _replay(plan, [[layer, len(keep)] for layer, keep in _positions(plan, visual)])
    order = np.random.default_rng(seed).permutation(np.asarray(visual)).tolist()
    return _replay(plan, [[layer, sorted(order[: len(keep)])] for layer, keep in _positions(plan, visual)])


def _positions(plan: Replay, visual: Sequence[int]) -> list[tuple[int, Sequence[int]]]:
    """Return a plan's cuts with positions."""
    found = []
    for layer, keep in plan.cuts:
        if isinstance(keep, int) and keep:
            raise ValueError("the trace holds numbers of tokens in place of positions")
        found.append((layer, keep or ()))
    return found


def _replay(plan: Replay, cuts: list[list[Any]]) -> dict[str, Any]:
    settings = plan.to_dict() | {"cuts": cuts}
    return settings
