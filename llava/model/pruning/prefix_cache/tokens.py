"""`LiveTokens`: packed prompts of which only the last rows run, because the first ones are known from elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..packed import PackedTokens, upload
from .nodes import Node

if TYPE_CHECKING:
    from .store import PrefixStore


@dataclass(frozen=True, eq=False)
class LiveTokens(PackedTokens):
    """The tokens that enter a layer: `lengths`, `visual`, `position` and `rope` of all, `hidden` of those that run.

    hidden:
        [1, sum of tails, D], the last `tails[b]` tokens of each prompt b
    chains:
        of each prompt the nodes, one after the other from its first row, that do not depend on how it goes on; a node
        that no earlier prompt of this or another batch has run is run by the first one that has it
    layer:
        the layer that the tokens enter
    runs:
        nodes that the layer runs first, with the prompt that runs them
    whole_queries:
        whether queries of all tokens are asked for
    """

    tails: tuple[int, ...] = ()
    chains: tuple[tuple[Node, ...], ...] = ()
    layer: int = 0
    runs: tuple[tuple[Node, int], ...] = ()
    whole_queries: bool = False
    store: PrefixStore | None = dataclasses.field(default=None, repr=False)

    @property
    def live_rope(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`rope` of the tokens that run."""
        return self.once("live rope", self._live_rope)

    def _live_rope(self) -> tuple[torch.Tensor, torch.Tensor]:
        index = upload(self.live, self.hidden.device)
        return tuple(part.index_select(-2, index.to(part.device)) for part in self.rope)

    def visual_hidden(self, prompt: int) -> torch.Tensor:
        """Return the hidden states [V, D] of a prompt's visual tokens, all of which run."""
        return self.hidden[0].index_select(0, upload(self._among_live(self.visual_places[prompt]), self.hidden.device))

    def with_hidden(self, hidden: torch.Tensor) -> LiveTokens:
        """Return the same tokens with other hidden states."""
        return dataclasses.replace(self, hidden=hidden)

    def enter(self, unread: np.ndarray | None = None, whole: bool = False, peek: bool = False) -> LiveTokens:
        """Return the tokens as `layer` runs them: rows that are known leave, rows that it has to run come back.

        unread:
            bool [T], visual tokens that text rows of the layer do not read: text after them then depends on the prompt
        whole:
            whether queries of all tokens will be asked for
        peek:
            whether the layer is asked for queries, keys and values alone
        """
        chains = self.chains
        if unread is not None:
            chains = tuple(self._all_read(b, chain, unread) for b, chain in enumerate(chains))
        runs: dict[Node, int] = {}
        starts = []
        for b, chain in enumerate(chains):
            known = list(takewhile(lambda node: node in runs or node.knows(self.layer, whole, peek), chain))
            starts.append(known[-1].end if known else 0)
            for node in chain[len(known) :]:
                if not node.knows(self.layer, whole, peek):
                    runs.setdefault(node, b)
        if not peek:
            for node in {node for chain in self.chains for node in chain if not node.kept}:
                node.forget_before(self.layer - 1)
        moved = self._starting_at(starts)
        return dataclasses.replace(moved, chains=chains, runs=tuple(runs.items()), whole_queries=whole)

    def _all_read(self, b: int, chain: tuple[Node, ...], unread: np.ndarray) -> tuple[Node, ...]:
        start, end = self.spans[b]
        if not unread[start:end].any():
            return chain
        visual = self.visual[start:end]
        return tuple(takewhile(lambda node: node.settled or visual[node.start : node.end].all(), chain))

    def complete(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple:
        """Return key and value [1, Hkv, T, d] of all tokens, and note those of the nodes that ran.

        query [1, H, R, d], key and value [1, Hkv, R, d] are of the R tokens that run.
        """
        for node, b in self.runs:
            rows = self._rows_of(node, b)
            node.learn(
                self.layer, key[:, :, rows], value[:, :, rows], query[:, :, rows] if self.whole_queries else None
            )
        return self._joined(key, "key"), self._joined(value, "value")

    def all_queries(self, query: torch.Tensor) -> torch.Tensor:
        """Return query [1, H, T, d]; rows that did not run are not a number, unless they were asked for (`enter`)."""
        if self.whole_queries:
            return self._joined(query, "query")
        everything = query.new_full((1, query.shape[1], len(self.visual), query.shape[3]), float("nan"))
        return everything.index_copy(2, upload(self.live, query.device), query)

    def _joined(self, live: torch.Tensor, name: str) -> torch.Tensor:
        """Return [1, H, T, d]: what the nodes know of this layer, and `live` [1, H, R, d]."""
        if self.tails == self.lengths:
            return live
        pieces = []
        for b, own in enumerate(live.split(self.tails, 2)):
            pieces += [getattr(node.known[self.layer], name) for node in self._left_out(b)]
            pieces.append(own)
        return torch.cat(pieces, 2)

    def after_layer(self, hidden: torch.Tensor) -> LiveTokens:
        """Return the tokens with the hidden states that the layer made of them, and note those of nodes that ran."""
        for node, b in self.runs:
            node.finish(self.layer, hidden[:, self._rows_of(node, b)])
        self.store.grew(self)
        return dataclasses.replace(self, hidden=hidden, layer=self.layer + 1, runs=())

    def whole(self) -> PackedTokens:
        """Return the tokens with the hidden states of all of them."""
        hidden = self._starting_at([0] * len(self.lengths)).hidden
        return PackedTokens(hidden, self.rope, self.lengths, self.visual, self.position, self._memo_of_all())

    def _memo_of_all(self) -> dict:
        """What is remembered of all tokens, whichever run."""
        names = ("starts", "spans", "visual_counts", "visual_places", "visual_positions")
        return {name: self._memo[name] for name in names if name in self._memo}

    def loosen(self, prompts: Iterable[int], entirely: bool = False) -> LiveTokens:
        """Return the tokens with all rows of `prompts` from the first visual token on running, `entirely`: all rows."""
        chains = list(self.chains)
        starts = [length - tail for length, tail in zip(self.lengths, self.tails, strict=True)]
        for b in prompts:
            chains[b] = () if entirely else tuple(takewhile(lambda node: node.settled, chains[b]))
            starts[b] = min(starts[b], chains[b][-1].end if chains[b] else 0)
        return dataclasses.replace(self._starting_at(starts), chains=tuple(chains))

    def keep(self, mask: np.ndarray) -> LiveTokens:
        """Return the tokens where `mask` (bool [T]) holds; those that do not run all stay."""
        running = self.live
        chosen = upload(np.flatnonzero(mask[running]), self.hidden.device)
        index = upload(np.flatnonzero(mask), self.hidden.device)
        segments = self.left(mask)
        return dataclasses.replace(
            self,
            hidden=self.hidden.index_select(1, chosen),
            rope=tuple(part.index_select(-2, index.to(part.device)) for part in self.rope),
            lengths=segments.keys,
            tails=segments.queries,
            visual=self.visual[mask],
            position=self.position[mask],
            _memo={},
        )

    def rewrite(self, places: np.ndarray, states: list[torch.Tensor]) -> PackedTokens:
        """Return the same tokens, those at `places` (int [n], in the stream) with other hidden states, n [*, D]."""
        return super().rewrite(self._among_live(places), states)

    def renumber(self, rotary) -> LiveTokens:
        """Return the same tokens at the rotary angles of positions counted anew, 0, 1, 2, … in each prompt."""
        return dataclasses.replace(self, rope=super().renumber(rotary).rope, _memo={})

    def _among_live(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.live, places)

    def _left_out(self, b: int) -> list[Node]:
        """The nodes of prompt b whose rows do not run."""
        start = self.lengths[b] - self.tails[b]
        return [node for node in self.chains[b] if node.end <= start]

    def _rows_of(self, node: Node, b: int) -> slice:
        """Where the rows of a node that prompt b runs are among those that run."""
        first = sum(self.tails[:b]) + node.start - (self.lengths[b] - self.tails[b])
        return slice(first, first + node.end - node.start)

    def _starting_at(self, starts: Sequence[int]) -> LiveTokens:
        """Return the tokens with the rows from `starts[b]` on of each prompt running; others come from its nodes."""
        before = [length - tail for length, tail in zip(self.lengths, self.tails, strict=True)]
        if list(starts) == before:
            return self
        pieces = []
        for b, (own, start) in enumerate(zip(self.hidden.split(self.tails, 1), starts, strict=True)):
            if start < before[b]:
                pieces += self._earlier(b, start, before[b], own.device)
            pieces.append(own[:, max(0, start - before[b]) :])
        tails = tuple(length - start for length, start in zip(self.lengths, starts, strict=True))
        return dataclasses.replace(self, hidden=torch.cat(pieces, 1), tails=tails, _memo=self._memo_of_all())

    def _earlier(self, b: int, start: int, end: int, device: torch.device) -> list[torch.Tensor]:
        """Hidden states of rows `start` to `end` of prompt b, which enter this layer without having run just before."""
        pieces = []
        for node in self.chains[b]:
            rows = slice(max(start, node.start) - node.start, min(end, node.end) - node.start)
            if rows.start < rows.stop:
                pieces.append(node.known[self.layer - 1].hidden[:, rows].to(device))
        return pieces
