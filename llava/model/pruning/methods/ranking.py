"""What methods share: scores to rank visual tokens by, and how many of the tokens stay."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..influence import Influence
from ..method import Method, PromptState
from ..probes import AttentionProbe, Probe

RANKS = ("last", "text", "visual", "influence")
"""Attention from the last token, from text rows or from visual rows (see `AttentionProbe`); and L2 influence."""


def rank_probe(rank: str) -> Probe:
    """Return what measures the scores of a rank."""
    return Influence() if rank == "influence" else AttentionProbe(rank)


def rank_scores(rank: str, measured: Any) -> np.ndarray:
    """Return the scores [V] among what the rank's probe measured."""
    return measured.l2 if rank == "influence" else getattr(measured, rank)


def check_one_of(config: Method, *keys: str) -> None:
    """Raise `ValueError` unless `config` sets exactly one of the keys."""
    given = sum(getattr(config, key) is not None for key in keys)
    if given != 1:
        raise ValueError(
            f"method {config.method!r} needs {' or '.join(map(repr, keys))} in the pruning config, "
            f"got {'both' if given else 'neither'}"
        )


@dataclass(frozen=True)
class BeforeDecoder(Method):
    """Base of methods that prune before the decoder and have one of two fields: `keep` tokens, or a `share` of them."""

    before_decoder = True

    def check(self) -> None:
        check_one_of(self, "keep", "share")

    @classmethod
    def schedules(cls, num_layers: int) -> list[Method]:
        """The one there is."""
        return [cls(share=1.0)]

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        return replace(self, keep=None, share=share)


def check_exit(exit_layer: int | None, first: int) -> None:
    """Raise `ValueError` for an exit before layer `first`."""
    if exit_layer is not None and exit_layer < first:
        raise ValueError(f"'exit_layer' must be an integer ≥ {first}, got {exit_layer}")


def kept_count(config: Method, prompt: PromptState) -> int:
    """Return how many of the prompt's visual tokens `config.keep` or `config.share` leaves.

    Warns where `keep` is above them, since nothing is pruned then.
    """
    there = len(prompt.positions)
    if config.keep is None:
        return round(config.share * there)
    if config.keep > there:
        warn_nothing_pruned("'keep'", config, config.keep, there)
    return min(config.keep, there)


def warn_nothing_pruned(key: str, config: Method, number: int, visual_tokens: int) -> None:
    """Warn (Python shows equal warnings once) that `key` asks for more tokens than there are."""
    warnings.warn(
        f"{key} of method {config.method!r} is {number}, but there are {visual_tokens} visual tokens: "
        "nothing is pruned there",
        stacklevel=2,
    )
