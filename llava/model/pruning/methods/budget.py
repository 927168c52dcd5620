"""How many visual tokens a method keeps: `keep`, a number, or `share`, a part of those that the prompt has."""

from __future__ import annotations

import warnings

from ..config import PruningConfig, check_choice, check_number

POSITIONS = ("original", "compact")


def check_budget(config: PruningConfig, least: int = 0) -> None:
    """Raise `ValueError` unless `config` sets exactly one of `keep` (an integer ≥ least) and `share` (0 to 1)."""
    if (config.keep is None) == (config.share is None):
        given = "both" if config.keep is not None else "neither"
        raise ValueError(f"method {config.method!r} needs 'keep' or 'share' in the pruning config, got {given}")
    if config.keep is not None:
        check_number("keep", config.keep, int, least)
    else:
        check_number("share", config.share, float, 0, 1)


def budget(config: PruningConfig, visual_tokens: int) -> int:
    """Return how many of `visual_tokens` stay; a `keep` above them is said in a warning, since nothing is pruned."""
    if config.keep is None:
        return round(config.share * visual_tokens)
    if config.keep > visual_tokens:
        say_nothing_pruned("'keep'", config, config.keep, visual_tokens)
    return min(config.keep, visual_tokens)


def say_nothing_pruned(key: str, config: PruningConfig, number: int, visual_tokens: int) -> None:
    """Warn (Python shows equal warnings once) that `key` asks for more tokens than there are."""
    warnings.warn(
        f"{key} of method {config.method!r} is {number}, but there are {visual_tokens} visual tokens: "
        "nothing is pruned there",
        stacklevel=2,
    )


def check_in_decoder(config: PruningConfig, num_layers: int, *keys: str) -> None:
    """Raise `ValueError` when a layer that one of the keys names is not a layer of the model."""
    for key in keys:
        value = getattr(config, key)
        for layer in value if isinstance(value, tuple) else (value,):
            if layer is not None and layer >= num_layers:
                raise ValueError(f"{key!r} is {layer}, but the model has {num_layers} layers (0 to {num_layers - 1})")


def check_positions(config: PruningConfig) -> None:
    """Raise `ValueError` unless `positions` is one that the engine knows."""
    check_choice("positions", config.positions, POSITIONS)


def as_tuple(config: PruningConfig, key: str, kind: type, low: float, high: float | None = None) -> None:
    """Turn the list `key` of a new config into a tuple of numbers in [low, high]; None stays None.

    Raises `ValueError` for anything else.
    """
    value = getattr(config, key)
    if value is None:
        return
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{key!r} must be a list of numbers, got {type(value).__name__} {value!r}")
    for number in value:
        check_number(key, number, kind, low, high)
    object.__setattr__(config, key, tuple(value))
