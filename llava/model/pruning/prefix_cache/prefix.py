"""Prefill with cached blocks: the rows that each layer computes, and the states of the rows that it does not.

Each function takes `PackedTokens`; those without a prefix pass unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import torch

from ..packed import PackedTokens
from .blocks import Block


@dataclass(frozen=True, eq=False)
class Prefix:
    """What is known of the prompts of a batch, at the entry of one layer.

    chains:
        blocks of each prompt, one after the other from its first row, that do not depend on how the prompt continues;
        a block that no earlier prompt of this or another batch has run is run by the first one that has it
    account:
        called with the tokens after every layer: counts rows, and evicts blocks
    layer:
        the layer that the tokens enter
    runs:
        blocks that the layer runs, each with the prompt that runs it
    queries:
        whether queries of all tokens are asked for
    """

    chains: tuple[tuple[Block, ...], ...]
    account: Callable[[PackedTokens], None]
    layer: int = 0
    runs: tuple[tuple[Block, int], ...] = ()
    queries: bool = False


def text_alone(tokens: PackedTokens) -> PackedTokens:
    """Return the text of the tokens that enter layer 0; known are its rows before the visual tokens."""
    text, prefix = tokens.keep(~tokens.visual), tokens.prefix
    if prefix is None:
        return text
    chains = tuple(tuple(takewhile(lambda block: block.settled, chain)) for chain in prefix.chains)
    return replace(text, prefix=replace(prefix, chains=chains))


def joined(text: PackedTokens, tokens: PackedTokens) -> PackedTokens:
    """Return `tokens`, as they were before `text_alone`, at the layer that `text` has reached."""
    together = tokens.joined(text)
    if text.prefix is None:
        return together
    return replace(together, prefix=replace(text.prefix, chains=tokens.prefix.chains))


def enter(
    tokens: PackedTokens, unread: np.ndarray | None = None, queries: bool = False, peek: bool = False
) -> PackedTokens:
    """Return the tokens as the layer runs them: rows that are known leave, rows that it has to run come back.

    unread:
        bool [T], visual tokens that text rows of the layer do not read: text after them then depends on the prompt
    queries:
        whether queries of all tokens will be asked for
    peek:
        whether the layer is asked for queries, keys and values alone
    """
    prefix = tokens.prefix
    if prefix is None:
        return tokens
    chains, layer = prefix.chains, prefix.layer
    if unread is not None:
        chains = tuple(_all_read(tokens, b, chain, unread) for b, chain in enumerate(chains))
    runs: dict[Block, int] = {}
    starts = []
    for b, chain in enumerate(chains):
        known = list(takewhile(lambda block: block in runs or block.serves(layer, queries, peek), chain))
        starts.append(known[-1].end if known else 0)
        for block in chain[len(known) :]:
            if not block.serves(layer, queries, peek):
                runs.setdefault(block, b)
    if not peek:
        for block in {block for chain in prefix.chains for block in chain if not block.kept}:
            block.forget_before(layer - 1)
    return replace(
        _starting_at(tokens, starts),
        prefix=replace(prefix, chains=chains, runs=tuple(runs.items()), queries=queries),
    )


def complete(tokens: PackedTokens, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple:
    """Return key and value [1, Hkv, T, d] of all tokens, and store those of the blocks that run.

    query [1, H, R, d], key and value [1, Hkv, R, d] are of the R rows that run.
    """
    prefix = tokens.prefix
    if prefix is None:
        return key, value
    for block, b in prefix.runs:
        rows = _rows_of(tokens, block, b)
        block.add(prefix.layer, key[:, :, rows], value[:, :, rows], query[:, :, rows] if prefix.queries else None)
    return _joined(tokens, key, "key"), _joined(tokens, value, "value")


def all_queries(tokens: PackedTokens, query: torch.Tensor) -> torch.Tensor:
    """Return query [1, H, T, d]; rows that did not run are NaN, unless their queries were asked for in `enter`."""
    if tokens.prefix is None:
        return query
    if tokens.prefix.queries:
        return _joined(tokens, query, "query")
    everything = query.new_full((1, query.shape[1], len(tokens.visual), query.shape[3]), float("nan"))
    return everything.index_copy(2, tokens.tensor("live", lambda: tokens.live, query.device), query)


def after_layer(tokens: PackedTokens, hidden: torch.Tensor) -> PackedTokens:
    """Return the tokens with the layer's output [1, R, D], and store that of the blocks that ran."""
    prefix = tokens.prefix
    if prefix is None:
        return tokens.with_hidden(hidden)
    for block, b in prefix.runs:
        block.add_output(prefix.layer, hidden[:, _rows_of(tokens, block, b)])
    prefix.account(tokens)
    return replace(tokens, hidden=hidden, prefix=replace(prefix, layer=prefix.layer + 1, runs=()))


def whole(tokens: PackedTokens) -> PackedTokens:
    """Return the tokens with the hidden states of all of them, and no prefix."""
    if tokens.prefix is None:
        return tokens
    return replace(_starting_at(tokens, [0] * len(tokens.lengths)), prefix=None)


def recompute(tokens: PackedTokens, prompts: Iterable[int], entirely: bool = False) -> PackedTokens:
    """Return tokens such that every row of `prompts` that the next selection may change is computed, not cached.

    These are all rows from a prompt's first visual token on; `entirely`: all of its rows.
    """
    prefix = tokens.prefix
    if prefix is None:
        return tokens
    chains, starts = list(prefix.chains), _starts(tokens)
    for b in prompts:
        chains[b] = () if entirely else tuple(takewhile(lambda block: block.settled, chains[b]))
        starts[b] = min(starts[b], chains[b][-1].end if chains[b] else 0)
    return replace(_starting_at(tokens, starts), prefix=replace(prefix, chains=tuple(chains)))


def _all_read(tokens: PackedTokens, b: int, chain: tuple[Block, ...], unread: np.ndarray) -> tuple[Block, ...]:
    """Return the blocks of a prompt whose rows do not depend on which visual tokens are unread."""
    start, end = tokens.spans[b]
    if not unread[start:end].any():
        return chain
    visual = tokens.visual[start:end]
    return tuple(takewhile(lambda block: block.settled or visual[block.start : block.end].all(), chain))


def _starts(tokens: PackedTokens) -> list[int]:
    """First row of each prompt that runs."""
    return [length - tail for length, tail in zip(tokens.lengths, tokens.tails, strict=True)]


def _joined(tokens: PackedTokens, live: torch.Tensor, name: str) -> torch.Tensor:
    """Return [1, H, T, d]: the blocks' states of this layer, and `live` [1, H, R, d]."""
    if tokens.tails == tokens.lengths:
        return live
    prefix, pieces = tokens.prefix, []
    for chain, own, start in zip(prefix.chains, live.split(tokens.tails, 2), _starts(tokens), strict=True):
        pieces += [getattr(block.states[prefix.layer], name) for block in chain if block.end <= start]
        pieces.append(own)
    return torch.cat(pieces, 2)


def _rows_of(tokens: PackedTokens, block: Block, b: int) -> slice:
    """Where the rows of a block that prompt b runs are among the rows that run."""
    first = sum(tokens.tails[:b]) + block.start - (tokens.lengths[b] - tokens.tails[b])
    return slice(first, first + block.end - block.start)


def _starting_at(tokens: PackedTokens, starts: Sequence[int]) -> PackedTokens:
    """Return the tokens with the rows from `starts[b]` on of each prompt running; others come from its blocks."""
    before = _starts(tokens)
    if list(starts) == before:
        return tokens
    pieces = []
    for b, (own, start) in enumerate(zip(tokens.hidden.split(tokens.tails, 1), starts, strict=True)):
        if start < before[b]:
            pieces += _earlier(tokens.prefix, b, start, before[b], own.device)
        pieces.append(own[:, max(0, start - before[b]) :])
    tails = tuple(length - start for length, start in zip(tokens.lengths, starts, strict=True))
    return replace(tokens, hidden=torch.cat(pieces, 1), tails=tails, _memo=tokens.layout_memo())


def _earlier(prefix: Prefix, b: int, start: int, end: int, device: torch.device) -> list[torch.Tensor]:
    """Hidden states of rows `start` to `end` of prompt b, which enter this layer without having run just before."""
    pieces = []
    for block in prefix.chains[b]:
        rows = slice(max(start, block.start) - block.start, min(end, block.end) - block.start)
        if rows.start < rows.stop:
            pieces.append(block.states[prefix.layer - 1].hidden[:, rows].to(device))
    return pieces
