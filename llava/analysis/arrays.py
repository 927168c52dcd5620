"""`NamedArray`: the result of an analysis, an array with named axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class NamedArray:
    """An array with named axes.

    values:
        the array
    axes:
        one name a dimension, such as `("layer", "token")`
    labels:
        what the places along some of the axes are: positions, words, names; an axis without labels counts from 0

    Raises:
        ValueError: names or labels that do not fit the array.

    """

    values: np.ndarray
    axes: tuple[str, ...]
    labels: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self):
        if len(self.axes) != self.values.ndim or len(set(self.axes)) < len(self.axes):
            raise ValueError(f"axes {self.axes} do not name the {self.values.ndim} dimensions of the array")
        for axis, labels in self.labels.items():
            if len(labels) != self.size(axis):
                raise ValueError(f"axis {axis!r} has {self.size(axis)} places and {len(labels)} labels")

    def size(self, axis: str) -> int:
        """Return the number of places along an axis."""
        return self.values.shape[self._dimension(axis)]

    def at(self, **places: int | Sequence[int]) -> NamedArray:
        """Return the array at these places along the named axes: a number drops its axis, a sequence keeps it."""
        array = self
        for axis, place in places.items():
            array = array._at(axis, place)
        return array

    def mean(self, axis: str) -> NamedArray:
        """Return the mean along an axis, without that axis."""
        return self._without(axis, self.values.mean(self._dimension(axis)))

    def sum(self, axis: str) -> NamedArray:
        """Return the sum along an axis, without that axis."""
        return self._without(axis, self.values.sum(self._dimension(axis)))

    def _at(self, axis: str, place: int | Sequence[int]) -> NamedArray:
        values = np.take(self.values, place, self._dimension(axis))
        if np.ndim(place) == 0:
            return self._without(axis, values)
        labels = dict(self.labels)
        labels[axis] = [self.labels[axis][p] if axis in labels else p for p in place]
        return NamedArray(values, self.axes, labels)

    def _without(self, axis: str, values: np.ndarray) -> NamedArray:
        axes = tuple(name for name in self.axes if name != axis)
        return NamedArray(values, axes, {name: self.labels[name] for name in axes if name in self.labels})

    def _dimension(self, axis: str) -> int:
        if axis not in self.axes:
            raise ValueError(f"no axis {axis!r}; this array has {', '.join(self.axes)}")
        return self.axes.index(axis)
