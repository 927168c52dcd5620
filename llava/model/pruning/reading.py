"""`Reading`: attention of one layer over packed prompts; causal, or by windows, blocks and another layer's keys.

`attention.attend` says which rows read whose values (`AttentionRule`); a reading says which keys a row sees at all.
Plain causal attention is the kernels' own. Everything else is `MaskedReading`: SDPA over a few rows at a time and the
keys that these may see, under a mask made on the device, so that no T×T mask and no T×T weights exist.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .kernels import Kernel
from .layers import LayerKind
from .layouts import visual_runs
from .packed import PackedTokens, upload
from .softmax import Softmax, attend_masked

ROWS = 512
"""Rows that are read at a time under a mask."""


def is_plain(tokens: PackedTokens, kind: LayerKind) -> bool:
    """Whether the prompts fit into the layer's window and no block is left: causal attention, which kernels compute."""
    if kind.window is None and tokens.blocks is None:
        return True
    return tokens.once(("plain", kind), lambda: _is_plain(tokens, kind))


def _is_plain(tokens: PackedTokens, kind: LayerKind) -> bool:
    if kind.window is not None and tokens.position.max() >= kind.window:
        return False
    if tokens.blocks is None:
        return True
    return all(np.unique(part[part >= 0], return_counts=True)[1].max(initial=1) == 1 for part in _split(tokens))


def _split(tokens: PackedTokens) -> list[np.ndarray]:
    return [tokens.blocks[start:end] for start, end in tokens.spans]


class Reading:
    """Plain causal attention: query [1, H, R, d] of the tokens that run, key and value [1, Hkv, T, d] of `keys`.

    keys:
        the tokens whose keys are read
    """

    def __init__(self, query, key, value, tokens: PackedTokens, softmax: Softmax, kernel: Kernel):
        self.query, self.key, self.value, self.tokens, self.keys = query, key, value, tokens, tokens
        self.softmax, self.kernel = softmax, kernel

    def everything(self, value: torch.Tensor) -> torch.Tensor:
        """Return what all rows read of `value`: [1, R, H, d]."""
        return self.kernel(self.query, self.key, value, self.tokens.everything, True, self.softmax.scale)

    def text(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what the text rows, at `rows` among those that run, read of text alone."""
        tokens = self.tokens
        columns = tokens.tensor("text columns", lambda: (~tokens.visual).nonzero()[0], self.query.device)
        read = (part.index_select(2, columns) for part in (self.key, self.value))
        return self.kernel(self.query.index_select(2, rows), *read, tokens.text, True, self.softmax.scale)

    def visual(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what the visual rows, at `rows`, read of text alone; a row that sees none reads itself."""
        tokens, runs = self.tokens, visual_runs(self.tokens)
        seen = tokens.tensor("visual keys", lambda: runs.keys, self.query.device)
        read = (part.index_select(2, seen) for part in (self.key, self.value))
        return self.kernel(self.query.index_select(2, rows), *read, runs.segments, False, self.softmax.scale)

    def without(self, unread: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        """Return what rows read in the stream without `unread` (bool [T]), and which of the R rows these are."""
        device = self.query.device
        rows = np.flatnonzero(~unread[self.tokens.live])
        stream = upload(np.flatnonzero(~unread), device)
        read = (part.index_select(2, stream) for part in (self.key, self.value))
        asking = self.query.index_select(2, upload(rows, device))
        return rows, self.kernel(asking, *read, self.tokens.left(~unread), True, self.softmax.scale)


class Rows(NamedTuple):
    """Rows or columns of one prompt: their order in the stream, their positions in the prompt, and their blocks."""

    order: np.ndarray
    position: np.ndarray
    block: np.ndarray


class MaskedReading(Reading):
    """Attention in which rows see what their layer's window and their block let them see."""

    def __init__(self, query, key, value, tokens, softmax, kind: LayerKind, keys: PackedTokens):
        super().__init__(query, key, value, tokens, softmax, None)
        self.kind, self.keys = kind, keys

    def everything(self, value: torch.Tensor) -> torch.Tensor:
        """Return what all rows read of `value`."""
        return self._read(np.arange(len(self.tokens.live)), np.arange(len(self.keys.visual)), value)

    def text(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what the text rows read of text alone."""
        return self._read(np.flatnonzero(~self.tokens.live_visual), np.flatnonzero(~self.keys.visual), self.value)

    def visual(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what the visual rows read of text alone; a row that sees none reads itself."""
        return self._read(np.flatnonzero(self.tokens.live_visual), np.flatnonzero(~self.keys.visual), self.value, True)

    def without(self, unread: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        """Return what text rows read without `unread`, and which rows these are."""
        rows = np.flatnonzero(~self.tokens.live_visual)
        return rows, self._read(rows, np.flatnonzero(~unread), self.value)

    def _read(self, rows: np.ndarray, columns: np.ndarray, value: torch.Tensor, alone: bool = False) -> torch.Tensor:
        """Return what rows (of those that run) read of columns (of `keys`): [1, rows, H, d].

        alone: whether a row may see no column, and reads itself then.
        """
        pieces = []
        places = self.tokens.live[rows]
        for (start, end), (first, last) in zip(self.tokens.spans, self.keys.spans, strict=True):
            own = rows[(places >= start) & (places < end)]
            read = columns[(columns >= first) & (columns < last)]
            for begin in range(0, len(own), ROWS):
                pieces.append(self._chunk(own[begin : begin + ROWS], read, value, alone))
        return torch.cat(pieces, 1)

    def _chunk(self, rows: np.ndarray, columns: np.ndarray, value: torch.Tensor, alone: bool) -> torch.Tensor:
        device = self.query.device
        own = self.tokens.live[rows]
        asking, asked = self._rows(self.tokens, own), self._rows(self.keys, columns)
        columns, asked = self._near(asking, columns, asked)
        query = _take(self.query, rows)
        seen = visible(*(Rows(*(upload(part, device) for part in side)) for side in (asking, asked)), self.kind)
        if not alone:
            return attend_masked(query, _take(self.key, columns), _take(value, columns), seen, self.softmax)
        seen = torch.cat((seen, torch.diag(~seen.any(-1))), -1)
        together = np.concatenate((columns, self._keys_of(own)))
        return attend_masked(query, _take(self.key, together), _take(value, together), seen, self.softmax)

    def _rows(self, tokens: PackedTokens, places: np.ndarray) -> Rows:
        position = tokens.position[places]
        blocks = np.full(len(places), -1) if tokens.blocks is None else tokens.blocks[places]
        return Rows(places if self.keys is self.tokens else position, position, blocks)

    def _keys_of(self, places: np.ndarray) -> np.ndarray:
        """Return where the keys of the rows at `places` of one prompt are."""
        if self.keys is self.tokens:
            return places
        prompt = int(np.searchsorted(self.tokens.starts, places[0], side="right")) - 1
        start, end = self.keys.spans[prompt]
        return start + np.searchsorted(self.keys.position[start:end], self.tokens.position[places])

    def _near(self, rows: Rows, columns: np.ndarray, asked: Rows) -> tuple[np.ndarray, Rows]:
        """Leave out the columns before and after all that some row may see."""
        some = asked.order <= rows.order.max()
        first = rows.position.min()
        some &= (asked.position >= first) | self.kind.near(first, asked.position)
        some |= np.isin(asked.block, rows.block[rows.block >= 0])
        places = np.flatnonzero(some)
        span = slice(places[0], places[-1] + 1) if len(places) else slice(0)
        return columns[span], Rows(*(part[span] for part in asked))


def seen_by(tokens: PackedTokens, prompt: int, rows: np.ndarray, kind: LayerKind) -> np.ndarray:
    """Return which tokens of a prompt some of its rows, counted from its own first token, see: bool [q, L]."""
    start, end = tokens.spans[prompt]
    order, position = np.arange(end - start), tokens.position[start:end]
    block = np.full(end - start, -1) if tokens.blocks is None else tokens.blocks[start:end]
    return visible(Rows(order[rows], position[rows], block[rows]), Rows(order, position, block), kind)


def visible(rows: Rows, columns: Rows, kind: LayerKind) -> torch.Tensor:
    """Return which rows [q] see which columns [k] of their prompt: bool [q, k]; works on arrays and on tensors."""
    position, block = rows.position[:, None], rows.block[:, None]
    seen = columns.order <= rows.order[:, None]
    same = (columns.block == block) & (block >= 0)
    near = kind.near(position, columns.position)
    return (seen & near) | same if kind.far_blocks else (seen | same) & near


def _take(states: torch.Tensor, index: np.ndarray) -> torch.Tensor:
    """Return the rows of states [1, H, T, d] at `index`, a view where they are neighbours."""
    if len(index) and (np.diff(index) == 1).all():
        return states[:, :, index[0] : index[-1] + 1]
    return states.index_select(2, upload(index, states.device))
