"""`Node`: some consecutive rows that prompts have in common, and what is known of them layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True, eq=False)
class Known:
    """What one layer made of a node's r rows.

    key, value:
        [1, Hkv, r, d], after rotary embedding
    query:
        [1, H, r, d], where a method reads it, else None
    hidden:
        [1, r, D], the layer's output; None where the layer was only asked for its keys
    """

    key: torch.Tensor
    value: torch.Tensor
    query: torch.Tensor | None = None
    hidden: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(part.nbytes for part in (self.key, self.value, self.query, self.hidden) if part is not None)

    def first(self, rows: int) -> Known:
        """Return the same of the first rows."""
        query = None if self.query is None else self.query[:, :, :rows]
        hidden = None if self.hidden is None else self.hidden[:, :rows]
        return Known(self.key[:, :, :rows], self.value[:, :, :rows], query, hidden)


@dataclass(eq=False)
class Node:
    """Rows `start` to `end` of every prompt that begins alike, in the layers that were run with none of them dropped.

    settled:
        whether no choice of visual tokens can change them: they come before the first
    kept:
        whether the store holds the node beyond one prefill; one that it does not hold knows the newest layers only
    known, nbytes:
        by layer, and the bytes of all of it
    """

    start: int
    end: int
    settled: bool
    kept: bool
    known: dict[int, Known] = field(default_factory=dict)
    nbytes: int = 0

    def knows(self, layer: int, whole: bool, peek: bool) -> bool:
        """Whether `layer` need not run these rows: with queries for `whole`, keys and values alone for `peek`."""
        known = self.known.get(layer)
        if known is None or (whole and known.query is None):
            return False
        return peek or known.hidden is not None

    def learn(self, layer: int, key: torch.Tensor, value: torch.Tensor, query: torch.Tensor | None) -> None:
        """Note what the rows are to the others in `layer`; slices are copied where they would outlive their batch."""
        parts = (key, value, query)
        if self.kept:
            parts = (None if part is None else part.clone(memory_format=torch.contiguous_format) for part in parts)
        self._put(layer, Known(*parts))

    def finish(self, layer: int, hidden: torch.Tensor) -> None:
        """Note what `layer` made of the rows: [1, r, D]."""
        self._put(layer, replace(self.known[layer], hidden=hidden.clone() if self.kept else hidden))

    def forget_before(self, layer: int) -> None:
        """Forget what was known of the layers before `layer`."""
        for number in [number for number in self.known if number < layer]:
            self.nbytes -= self.known.pop(number).nbytes

    def shorten(self, rows: int) -> None:
        """Forget all but the first rows."""
        self.end = self.start + rows
        for layer in list(self.known):
            self._put(layer, self.known[layer].first(rows))

    def _put(self, layer: int, known: Known) -> None:
        self.nbytes += known.nbytes - (self.known[layer].nbytes if layer in self.known else 0)
        self.known[layer] = known
