"""Types of a method's settings: a field checks itself by its annotation, and every mistake is one line.

Checked are `int`, `float`, `bool`, `Literal[…]`, `Layer`, `Count`, `Share`, `Annotated[…, AtLeast(n)]`, and of these
`tuple[…, ...]`, named tuples and `… | None`; lists become tuples. A field of any other type is left to `Method.check`.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

LARGEST_INTEGER, LARGEST_FLOAT = 2**63 - 1, sys.float_info.max
"""What numpy and torch can count with; JSON can say more."""


@dataclass(frozen=True)
class AtLeast:
    """Annotation: the smallest allowed number."""

    low: int


@dataclass(frozen=True)
class AtMost:
    """Annotation: the largest allowed number."""

    high: float


class _IsLayer:
    """Annotation: the number is a layer, which the model has to have."""


Layer = Annotated[int, AtLeast(0), _IsLayer]
"""A decoder layer, counted from 0; `Method.check_layers` refuses one that the model lacks."""
Count = Annotated[int, AtLeast(0)]
"""A number of tokens."""
Share = Annotated[float, AtLeast(0), AtMost(1)]
"""A part of a whole, from 0 to 1."""


@cache
def types_of(cls: type) -> dict[str, Any]:
    """Return the type of every field of a dataclass, by name."""
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"the field types of {cls.__qualname__} cannot be read ({error}): define the class at the top of a module"
        ) from None
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def is_layer(kind: Any) -> bool:
    """Whether a field of type `kind` holds a layer, or several."""
    return kind is _IsLayer or any(is_layer(part) for part in get_args(kind))


def expected(kind: Any) -> str:
    """Return in words what a field of type `kind` holds, None left out: "an integer ≥ 1", "a list of layers"."""
    arguments, origin = get_args(kind), get_origin(kind)
    if _is_union(kind):
        return " or ".join(expected(part) for part in arguments if part is not types.NoneType)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple and arguments[1:] == (...,):
        one = arguments[0]
        if get_origin(one) is Literal:
            return f"a list of {', '.join(get_args(one))}"
        return f"a list of {expected(one) if _is_row(one) else 'layers' if is_layer(one) else 'numbers'}"
    if _is_row(kind):
        return f"[{', '.join(kind._fields)}]"
    if kind is bool:
        return "true or false"
    if _is_number(kind):
        number, low, high = _limits(kind)
        word = "an integer" if number is int else "a number"
        return f"{word} from {low} to {high}" if high is not None else word if low is None else f"{word} ≥ {low}"
    return getattr(kind, "__name__", str(kind))


def checked(name: str, value: Any, kind: Any) -> Any:
    """Return `value` as a field `name` of type `kind` holds it, lists as tuples.

    Raises:
        ValueError: wrong type or out of range; names the field, what it expects and what it got.

    """
    arguments, origin = get_args(kind), get_origin(kind)
    if _is_union(kind):
        if value is None and types.NoneType in arguments:
            return None
        listed = isinstance(value, list | tuple)
        fitting = [part for part in arguments if part is not types.NoneType and (get_origin(part) is tuple) == listed]
        others = [part for part in arguments if part is not types.NoneType]
        return checked(name, value, (fitting or others)[0])
    wrong = ValueError(f"{name!r} must be {expected(kind)}, got {type(value).__name__} {_shown(value)}")
    if origin is Literal and value not in arguments:
        raise ValueError(f"{name!r} must be {expected(kind)}, got {_shown(value)}{nearest(value, arguments)}")
    if origin is tuple or _is_row(kind):
        if not isinstance(value, list | tuple):
            raise wrong
        if origin is tuple:
            return tuple(checked(name, one, arguments[0]) for one in value)
        if not len(kind._fields) - len(kind._field_defaults) <= len(value) <= len(kind._fields):
            raise wrong
        kinds = typing.get_type_hints(kind, include_extras=True).values()
        return kind(*(checked(name, one, part) for one, part in zip(value, kinds, strict=False)))
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{name!r} must be {expected(kind)}, got {_shown(value)}")
    if _is_number(kind):
        number, low, high = _limits(kind)
        if isinstance(value, bool) or not isinstance(value, int if number is int else (int, float)):
            raise wrong
        largest = LARGEST_INTEGER if number is int else LARGEST_FLOAT
        if not (-largest if low is None else low) <= value <= (largest if high is None else high):
            raise ValueError(f"{name!r} must be {expected(kind)}, got {_shown(value)}")
    return value


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (typing.Union, types.UnionType)


def _is_row(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def _is_number(kind: Any) -> bool:
    return (get_args(kind)[0] if get_origin(kind) is Annotated else kind) in (int, float)


def _limits(kind: Any) -> tuple[type, float | None, float | None]:
    number, *limits = get_args(kind) or (kind,)
    low = max((limit.low for limit in limits if isinstance(limit, AtLeast)), default=None)
    return number, low, min((limit.high for limit in limits if isinstance(limit, AtMost)), default=None)


def nearest(word: Any, known: Collection[str]) -> str:
    """Return " (did you mean …?)" for the known word that is most like `word`, "" where none is like it."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print an integer of thousands of digits
        text = "of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "…"
