"""Which rows read which keys, and whose values, where an attention rule treats visual tokens apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .packed import PackedTokens, Segments


@dataclass(frozen=True)
class VisualRuns:
    """For `remove`: visual rows, grouped by the text before them, against the gathered keys of that text."""

    rows: np.ndarray
    keys: np.ndarray
    segments: Segments


@dataclass(frozen=True)
class MergePass:
    """For `merge`: token `source[t]` lends token t its value; `rows` bool [T] take the result (None: every row)."""

    source: np.ndarray
    rows: np.ndarray | None


def visual_runs(tokens: PackedTokens) -> VisualRuns:
    """Group visual rows by prompt and by the text before them; rows with no text before read themselves.

    `rows` counts the tokens that the layer runs, `keys` all of them.
    """
    return tokens.once("visual_runs", lambda: _visual_runs(tokens))


def _visual_runs(tokens: PackedTokens) -> VisualRuns:
    keys, queries, counts = [], [], []
    for (start, end), tail in zip(tokens.spans, tokens.tails, strict=True):
        visual = tokens.visual[start:end]
        text = start + np.flatnonzero(~visual)
        running = np.flatnonzero(visual) >= end - start - tail
        before = np.cumsum(~visual)[visual][running]
        rows = start + np.flatnonzero(visual)[running]
        for row in rows[before == 0]:
            keys.append([row])
            queries.append(1)
            counts.append(1)
        for seen, number in zip(*np.unique(before[before > 0], return_counts=True), strict=True):
            keys.append(text[:seen])
            queries.append(int(number))
            counts.append(int(seen))
    flat = np.concatenate(keys) if keys else np.empty(0, int)
    return VisualRuns(np.flatnonzero(tokens.live_visual), flat, Segments(tuple(queries), tuple(counts)))


@dataclass(frozen=True)
class Stretches:
    """For text that reads frozen visual tokens: rows with equally many of these before them make a stretch.

    keys:
        the tokens that each stretch reads, one stretch after the other
    segments:
        rows that run and keys of each stretch
    order:
        all tokens, in the order of their prompts

    Tokens are places in the stream of all text tokens and then all visual ones.
    """

    keys: np.ndarray
    segments: Segments
    order: np.ndarray


def text_stretches(text: PackedTokens, tokens: PackedTokens) -> Stretches:
    """Return what `text`, the text tokens among `tokens`, reads of them all."""
    return text.once("text stretches", lambda: _text_stretches(text, tokens))


def _text_stretches(text: PackedTokens, tokens: PackedTokens) -> Stretches:
    visual = tokens.visual
    order = np.where(visual, len(text.visual) + np.cumsum(visual) - 1, np.cumsum(~visual) - 1)
    keys, queries, counts = [], [], []
    for (start, end), length, tail in zip(tokens.spans, text.lengths, text.tails, strict=True):
        rows = np.flatnonzero(~visual[start:end])
        before = np.cumsum(visual[start:end])[rows]
        running = np.arange(length) >= length - tail
        for seen in np.unique(before[running]):
            stretch = rows[before == seen]
            keys.append(order[start : start + stretch[-1] + 1])
            queries.append(int(running[before == seen].sum()))
            counts.append(len(keys[-1]))
    return Stretches(np.concatenate(keys), Segments(tuple(queries), tuple(counts)), order)


def first_half(tokens: PackedTokens) -> np.ndarray:
    """Return bool [T]: the first ⌊V/2⌋ visual tokens of each prompt."""
    half = np.zeros_like(tokens.visual)
    for (start, end), count in zip(tokens.spans, tokens.visual_counts, strict=True):
        half[start + np.flatnonzero(tokens.visual[start:end])[: count // 2]] = True
    return half


def sinks(tokens: PackedTokens, sink: int) -> np.ndarray:
    """Return the place in the stream of visual token number `sink` of each prompt that has visual tokens.

    Raises:
        ValueError: a prompt has visual tokens, but not that many.

    """
    places = []
    for (start, end), count in zip(tokens.spans, tokens.visual_counts, strict=True):
        if count and sink >= count:
            raise ValueError(
                f"'sink_token' is {sink}, but a prompt has only {count} visual tokens; use 0 to {count - 1}"
            )
        if count:
            places.append(start + int(np.flatnonzero(tokens.visual[start:end])[sink]))
    return np.array(places, int)


def merge_passes(tokens: PackedTokens, sink: int) -> list[MergePass]:
    """Return whose value each visual column lends when text rows merge into visual token number `sink`.

    One pass serves every row but those that come before the sink (several images, a late sink): each group of
    them merges into the last visual token it sees, in a pass of its own.
    """
    return tokens.once(("merge", sink), lambda: _merge_passes(tokens, sink))


def _merge_passes(tokens: PackedTokens, sink: int) -> list[MergePass]:
    places = iter(sinks(tokens, sink))
    targets: list[dict[int, np.ndarray]] = []
    main = np.arange(len(tokens.visual))
    for (start, end), count in zip(tokens.spans, tokens.visual_counts, strict=True):
        if not count:
            continue
        where = start + np.flatnonzero(tokens.visual[start:end])
        main[where] = next(places)
        seen = np.cumsum(tokens.visual[start:end])
        early = ~tokens.visual[start:end] & (seen > 0) & (seen <= sink)
        targets.append({int(where[c - 1]): start + np.flatnonzero(early & (seen == c)) for c in set(seen[early])})
    passes = [MergePass(main, None)]
    for number in range(max((len(groups) for groups in targets), default=0)):
        source, rows = main.copy(), np.zeros_like(tokens.visual)
        for groups in targets:
            for place, members in list(groups.items())[number : number + 1]:
                prompt = int(np.searchsorted(tokens.starts, place, side="right")) - 1
                start, end = tokens.spans[prompt]
                source[start + np.flatnonzero(tokens.visual[start:end])] = place
                rows[members] = True
        passes.append(MergePass(source, rows))
    return passes
