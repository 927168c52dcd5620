"""`Block`: consecutive rows that prompts have in common, and their states in each layer that has run them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True, eq=False)
class BlockStates:
    """States of a block's r rows in one layer.

    key, value:
        [1, Hkv, r, d], after rotary embedding
    query:
        [1, H, r, d], where a method reads it, else None
    hidden:
        [1, r, D], the layer's output; None where the layer has only made its keys
    """

    key: torch.Tensor
    value: torch.Tensor
    query: torch.Tensor | None = None
    hidden: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(part.nbytes for part in (self.key, self.value, self.query, self.hidden) if part is not None)

    def first(self, rows: int) -> BlockStates:
        """Return the states of the first rows."""
        query = None if self.query is None else self.query[:, :, :rows]
        hidden = None if self.hidden is None else self.hidden[:, :rows]
        return BlockStates(self.key[:, :, :rows], self.value[:, :, :rows], query, hidden)


@dataclass(eq=False)
class Block:
    """Rows `start` to `end` of every prompt that begins alike, in the layers that ran with none of them dropped.

    settled:
        whether no selection of visual tokens can change the rows: they come before the first one
    kept:
        whether the cache holds the block beyond one prefill; otherwise only its newest layers are held
    states, nbytes:
        states per layer, and the bytes of all of them
    """

    start: int
    end: int
    settled: bool
    kept: bool
    states: dict[int, BlockStates] = field(default_factory=dict)
    nbytes: int = 0

    def serves(self, layer: int, queries: bool, peek: bool) -> bool:
        """Whether `layer` need not run the rows: with their `queries`, or, for `peek`, keys and values alone."""
        states = self.states.get(layer)
        if states is None or (queries and states.query is None):
            return False
        return peek or states.hidden is not None

    def add(self, layer: int, key: torch.Tensor, value: torch.Tensor, query: torch.Tensor | None) -> None:
        """Store what other rows of `layer` read; slices are copied where they outlive their batch."""
        parts = (key, value, query)
        if self.kept:
            parts = (None if part is None else part.clone(memory_format=torch.contiguous_format) for part in parts)
        self._put(layer, BlockStates(*parts))

    def add_output(self, layer: int, hidden: torch.Tensor) -> None:
        """Store the output of `layer`, [1, r, D]."""
        self._put(layer, replace(self.states[layer], hidden=hidden.clone() if self.kept else hidden))

    def forget_before(self, layer: int) -> None:
        """Forget the states of the layers before `layer`."""
        for number in [number for number in self.states if number < layer]:
            self.nbytes -= self.states.pop(number).nbytes

    def truncate(self, rows: int) -> None:
        """Forget all but the first rows."""
        self.end = self.start + rows
        for layer in list(self.states):
            self._put(layer, self.states[layer].first(rows))

    def _put(self, layer: int, states: BlockStates) -> None:
        self.nbytes += states.nbytes - (self.states[layer].nbytes if layer in self.states else 0)
        self.states[layer] = states
