"""Formatting of figures and configs in tables: one meaning of every unit, in every command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_UNITS = (1e12, 1e9, 1e6, 1e3)


def count_text(value: float) -> str:
    """A large count in three digits or more: 3.82T, 860M."""
    return _scaled(value, ("T", "G", "M", "K"), "")


def bytes_text(value: float) -> str:
    """Bytes in decimal units: 3.51 MB is 3,510,000 bytes, 1 kB is 1,000."""
    return _scaled(value, (" TB", " GB", " MB", " kB"), " B")


def _scaled(value: float, names: tuple[str, ...], smallest: str) -> str:
    size, unit = next((pair for pair in zip(_UNITS, names, strict=True) if abs(value) >= pair[0]), (1, smallest))
    scaled = value / size
    digits = 0 if size == 1 or abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2
    return f"{scaled:,.{digits}f}{unit}"


def change_text(text: str, share: float) -> str:
    """`text` with its share of the dense figure as a change, e.g. "505M (-41%)"; alone where they are equal."""
    return f"{text} ({100 * (share - 1):+.0f}%)" if round(share, 3) != 1 else text


def config_text(settings: Mapping[str, Any] | None) -> str:
    """A pruning config, as `PruningConfig.to_dict` gives it, in one line; "dense" for None.

    Keys that only repeat their default are left out; all are shown of a method that is not known here.
    """
    if settings is None:
        return "dense"
    shown = dict(settings)
    named = [str(shown.pop(key)) for key in ("method", "preset") if key in shown]
    rest = [f"{key} {_value(shown[key])}" for key in shown if not _is_default(settings, key)]
    return ", ".join([" ".join(named), *rest])


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_default(settings: Mapping[str, Any], key: str) -> bool:
    if ":" in str(settings.get("method")):  # a class in a user's file, which reading a result does not execute
        return False
    from llava.model.pruning import PruningConfig  # here: everything else in this file does without torch

    try:
        without = PruningConfig.from_dict({name: value for name, value in settings.items() if name != key})
        return without == PruningConfig.from_dict(settings)
    except ValueError:  # needed, or of an unknown method
        return False
