"""Packed tokens: a batch of prompts as one stream `[1, T, D]`, without padding; pruning is `tokens.keep(mask)`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

Rotary = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]
"""(x, position_ids) → (cos, sin) of every rotary table, one after the other."""


@dataclass(frozen=True)
class Segments:
    """Which stretch of queries reads which stretch of keys: stretch i holds `queries[i]` rows and `keys[i]` keys.

    Where a stretch is read causally, its rows are the last ones of its keys.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PackedTokens:
    """The tokens that enter a layer. Layout lives on the host (numpy); tensors derived from it are made once.

    hidden:
        [1, R, D], the rows that a layer runs: all T tokens, prompt after prompt, or only the last `tails[b]` of each
        prompt b where the prefix cache holds the others
    rope:
        (cos, sin) of all tokens, along dimension −2; of every rotary table in turn, where a decoder has several
    lengths:
        tokens per prompt, summing to T
    visual:
        bool [T]; never True for a prompt's last token, which is what is read
    position:
        int [T], place of each token in its own prompt, counted from 0 without padding
    targets:
        int64 [T], label of the token that followed each one in its prompt as given, −100 where none counts; None
        without labels
    answers:
        bool [T], True where an answer begins: the first label after a token without one; None without labels
    tails:
        rows that a layer runs, per prompt, summing to R; default: `lengths`
    added:
        [1, T, D] by layer: features that join the hidden states after that layer
    blocks:
        int [T], tokens of one number ≥ 0 in a prompt read each other both ways; None where none do
    weights:
        fp32 [T] on the device, how many tokens each one stands for; None where attention is not rectified
    grid:
        int [T, 4], where each token lies among images and frames (`pruning.grid`), before anything is pruned; else None
    prefix:
        what the prefix cache knows of the prompts (`prefix_cache.Prefix`), None without one
    """

    hidden: torch.Tensor
    rope: tuple[torch.Tensor, ...]
    lengths: tuple[int, ...]
    visual: np.ndarray
    position: np.ndarray
    targets: np.ndarray | None = None
    answers: np.ndarray | None = None
    tails: tuple[int, ...] | None = None
    added: Mapping[int, torch.Tensor] = field(default_factory=dict, repr=False)
    blocks: np.ndarray | None = None
    weights: torch.Tensor | None = field(default=None, repr=False)
    grid: np.ndarray | None = field(default=None, repr=False)
    prefix: Any = field(default=None, repr=False)
    _memo: dict = field(default_factory=dict, repr=False)

    def __post_init__(self):
        if self.tails is None:
            object.__setattr__(self, "tails", self.lengths)

    @property
    def live(self) -> np.ndarray:
        """Places in the stream of the tokens that a layer runs: int [R]."""
        return self.once("live", self._live)

    def _live(self) -> np.ndarray:
        ends = [end for _, end in self.spans]
        return np.concatenate([np.arange(end - tail, end) for end, tail in zip(ends, self.tails, strict=True)])

    @property
    def live_visual(self) -> np.ndarray:
        """Which of them are visual: bool [R]."""
        return self.once("live visual", lambda: self.visual[self.live])

    @property
    def live_rope(self) -> tuple[torch.Tensor, ...]:
        """`rope` of the tokens that a layer runs."""
        return self.rope if self.tails == self.lengths else self.once("live rope", self._live_rope)

    def _live_rope(self) -> tuple[torch.Tensor, ...]:
        index = upload(self.live, self.hidden.device)
        return tuple(part.index_select(-2, index.to(part.device)) for part in self.rope)

    @property
    def starts(self) -> np.ndarray:
        """Offset of each prompt in the stream, and T at the end: int [B + 1]."""
        return self.once("starts", lambda: np.concatenate([[0], np.cumsum(self.lengths)]))

    @property
    def visual_counts(self) -> list[int]:
        """Visual tokens of each prompt."""
        return self.once("visual_counts", lambda: [int(self.visual[a:b].sum()) for a, b in self.spans])

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(start, end) of each prompt in the stream."""
        return self.once(
            "spans", lambda: [(int(a), int(b)) for a, b in zip(self.starts, self.starts[1:], strict=False)]
        )

    @property
    def visual_places(self) -> list[np.ndarray]:
        """Places in the stream of each prompt's visual tokens: int [V] each."""
        return self.once(
            "visual_places", lambda: [start + np.flatnonzero(self.visual[start:end]) for start, end in self.spans]
        )

    @property
    def visual_positions(self) -> list[np.ndarray]:
        """Places of the same tokens in their own prompts, as they were given: int [V] each."""
        return self.once("visual_positions", lambda: [self.position[places] for places in self.visual_places])

    @property
    def everything(self) -> Segments:
        """Each prompt reads itself."""
        return Segments(self.tails, self.lengths)

    @property
    def text(self) -> Segments:
        """Each prompt's text reads itself, in the stream of text tokens only."""
        return self.once("text", lambda: self.left(~self.visual))

    def left(self, mask: np.ndarray) -> Segments:
        """Each prompt reads itself, in the stream of the tokens where `mask` (bool [T]) holds."""
        counts = tuple(int(mask[start:end].sum()) for start, end in self.spans)
        queries = tuple(
            int(mask[end - tail : end].sum()) for (_, end), tail in zip(self.spans, self.tails, strict=True)
        )
        return Segments(queries, counts)

    def visual_hidden(self, prompt: int) -> torch.Tensor:
        """Return the hidden states [V, D] of a prompt's visual tokens, all of which must run."""
        places = self.tensor(
            ("visual rows", prompt), lambda: self._rows(self.visual_places[prompt]), self.hidden.device
        )
        return self.hidden[0].index_select(0, places)

    def with_hidden(self, hidden: torch.Tensor) -> PackedTokens:
        """Return the same tokens with other hidden states."""
        return replace(self, hidden=hidden)

    def keep(self, mask: np.ndarray) -> PackedTokens:
        """Return the tokens where `mask` (bool [T]) holds, at their original positions and rotary angles.

        Tokens that do not run must all stay.
        """
        index = rows = upload(np.flatnonzero(mask), self.hidden.device)
        if self.tails != self.lengths:
            rows = upload(np.flatnonzero(mask[self.live]), self.hidden.device)
        left = self.left(mask)
        return replace(
            self,
            hidden=self.hidden.index_select(1, rows),
            rope=tuple(part.index_select(-2, index.to(part.device)) for part in self.rope),
            lengths=left.keys,
            tails=left.queries,
            visual=self.visual[mask],
            position=self.position[mask],
            targets=None if self.targets is None else self.targets[mask],
            answers=None if self.answers is None else self.answers[mask],
            added={layer: part.index_select(1, index.to(part.device)) for layer, part in self.added.items()},
            blocks=None if self.blocks is None else self.blocks[mask],
            weights=None if self.weights is None else self.weights.index_select(0, index),
            grid=None,
            _memo={},
        )

    def joined(self, text: PackedTokens) -> PackedTokens:
        """Return all of these tokens, visual ones in their states here, text ones in those that `text` ran to.

        `text`: these tokens without the visual ones, some layers later; rows that it does not run, at the beginning of
        prompts, do not run here either.
        """
        left_out = [length - tail for length, tail in zip(text.lengths, text.tails, strict=True)]
        tails = tuple(length - out for length, out in zip(self.lengths, left_out, strict=True))
        runs = np.concatenate([np.arange(n) >= out for n, out in zip(self.lengths, left_out, strict=True)])
        visual = upload(np.flatnonzero(self.visual), self.hidden.device)
        rows = torch.cat((text.hidden, self.hidden.index_select(1, visual)), 1)
        own, seen = self.visual[runs], sum(text.tails)
        source = np.where(own, seen + np.cumsum(own) - 1, np.cumsum(~own) - 1)
        hidden = rows.index_select(1, upload(source, rows.device))
        return replace(self, hidden=hidden, tails=tails, prefix=text.prefix, _memo=self.layout_memo())

    def with_added(self, layer: int, hidden: torch.Tensor) -> tuple[PackedTokens, torch.Tensor]:
        """Return `hidden` [1, R, D], the output of `layer`, with what joins it there; and the tokens without that."""
        part = self.added[layer]
        if self.tails != self.lengths:
            part = part.index_select(1, upload(self.live, part.device))
        rest = {later: features for later, features in self.added.items() if later != layer}
        return replace(self, added=rest), hidden + part.to(hidden)

    def rewrite(self, places: np.ndarray, states: list[torch.Tensor]) -> PackedTokens:
        """Return the same tokens, those at `places` (int [n], in the stream) with other hidden states, n [*, D]."""
        index = upload(self._rows(places), self.hidden.device)
        new = torch.cat(states).to(self.hidden)[None]
        return self.with_hidden(self.hidden.index_copy(1, index, new))

    def renumber(self, rotary: Rotary) -> PackedTokens:
        """Return the same tokens at the rotary angles of the positions 0, 1, 2, … in each prompt."""
        places = np.concatenate([np.arange(n) for n in self.lengths])
        rope = tuple(rotary(self.hidden, upload(places, self.hidden.device)[None]))
        memo = {key: value for key, value in self._memo.items() if key != "live rope"}
        return replace(self, rope=rope, _memo=memo)

    def _rows(self, places: np.ndarray) -> np.ndarray:
        """Return where tokens at `places` in the stream are among the rows that run."""
        return places if self.tails == self.lengths else np.searchsorted(self.live, places)

    def layout_memo(self) -> dict:
        """Return what is remembered of the layout of all tokens, whichever run."""
        names = ("starts", "spans", "visual_counts", "visual_places", "visual_positions")
        return {name: self._memo[name] for name in names if name in self._memo}

    def tensor(self, name: Hashable, make: Callable[[], np.ndarray], device: torch.device) -> torch.Tensor:
        """Return the array that `make` builds as a tensor on `device`, made at most once for these tokens."""
        return self.once((name, device), lambda: upload(make(), device))

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` returns, called at most once for these tokens."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return the array as a tensor on `device`; on CUDA the host does not wait for the copy."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
