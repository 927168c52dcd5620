"""Packed tokens: a batch of prompts as one stream `[1, T, D]`, without padding; pruning is `tokens.keep(mask)`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

Rotary = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(x, position_ids) → (cos, sin)."""


@dataclass(frozen=True)
class Segments:
    """Which stretch of queries reads which stretch of keys: stretch i holds `queries[i]` rows and `keys[i]` keys.

    Where a stretch is read causally, its rows are the last ones of its keys.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]


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


@dataclass(frozen=True, eq=False)
class PackedTokens:
    """The tokens that enter a layer. Layout lives on the host (numpy); tensors derived from it are made once.

    hidden:
        [1, T, D], the prompts of the batch one after the other
    rope:
        (cos, sin), tokens along dimension −2
    lengths:
        tokens of each prompt, summing to T
    visual:
        bool [T]; never True for a prompt's last token, which is what is read
    position:
        int [T], place of each token in its own prompt, counted from 0 without padding
    """

    hidden: torch.Tensor
    rope: tuple[torch.Tensor, torch.Tensor]
    lengths: tuple[int, ...]
    visual: np.ndarray
    position: np.ndarray
    _memo: dict = field(default_factory=dict, repr=False)

    @property
    def tails(self) -> tuple[int, ...]:
        """How many tokens of each prompt a layer runs, its last ones: all of them, unless a prefix is reused."""
        return self.lengths

    @property
    def live(self) -> np.ndarray:
        """Places in the stream of the tokens that a layer runs: int [sum of tails]."""
        return self._once("live", self._live)

    def _live(self) -> np.ndarray:
        ends = [end for _, end in self.spans]
        return np.concatenate([np.arange(end - tail, end) for end, tail in zip(ends, self.tails, strict=True)])

    @property
    def live_visual(self) -> np.ndarray:
        """Which of them are visual: bool [sum of tails]."""
        return self._once("live visual", lambda: self.visual[self.live])

    @property
    def live_rope(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`rope` of the tokens that a layer runs."""
        return self.rope

    @property
    def starts(self) -> np.ndarray:
        """Offset of each prompt in the stream, and T at the end: int [B + 1]."""
        return self._once("starts", lambda: np.concatenate([[0], np.cumsum(self.lengths)]))

    @property
    def visual_counts(self) -> list[int]:
        """Visual tokens of each prompt."""
        return self._once("visual_counts", lambda: [int(self.visual[a:b].sum()) for a, b in self.spans])

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(start, end) of each prompt in the stream."""
        return self._once(
            "spans", lambda: [(int(a), int(b)) for a, b in zip(self.starts, self.starts[1:], strict=False)]
        )

    @property
    def visual_places(self) -> list[np.ndarray]:
        """Places in the stream of each prompt's visual tokens: int [V] each."""
        return self._once(
            "visual_places", lambda: [start + np.flatnonzero(self.visual[start:end]) for start, end in self.spans]
        )

    @property
    def visual_positions(self) -> list[np.ndarray]:
        """Places of the same tokens in their own prompts, as they were given: int [V] each."""
        return self._once("visual_positions", lambda: [self.position[places] for places in self.visual_places])

    @property
    def everything(self) -> Segments:
        """Each prompt reads itself."""
        return Segments(self.tails, self.lengths)

    @property
    def text(self) -> Segments:
        """Each prompt's text reads itself, in the stream of text tokens only."""
        return self._once("text", lambda: self.left(~self.visual))

    def left(self, mask: np.ndarray) -> Segments:
        """Each prompt reads itself, in the stream of the tokens where `mask` (bool [T]) holds."""
        counts = tuple(int(mask[start:end].sum()) for start, end in self.spans)
        queries = tuple(
            int(mask[end - tail : end].sum()) for (_, end), tail in zip(self.spans, self.tails, strict=True)
        )
        return Segments(queries, counts)

    def visual_hidden(self, prompt: int) -> torch.Tensor:
        """Return the hidden states [V, D] of a prompt's visual tokens."""
        device = self.hidden.device
        places = self.tensor(("visual places", prompt), lambda: self.visual_places[prompt], device)
        return self.hidden[0].index_select(0, places)

    def with_hidden(self, hidden: torch.Tensor) -> PackedTokens:
        """Return the same tokens with other hidden states."""
        return PackedTokens(hidden, self.rope, self.lengths, self.visual, self.position, self._memo)

    def enter(self, hidden: np.ndarray | None = None, whole: bool = False, peek: bool = False) -> PackedTokens:
        """Return the tokens as the next layer runs them; see `LiveTokens.enter`."""
        return self

    def complete(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple:
        """Return key and value [1, Hkv, T, d] of all tokens, from query, key and value of those that the layer runs."""
        return key, value

    def all_queries(self, query: torch.Tensor) -> torch.Tensor:
        """Return query [1, H, T, d] of all tokens, from that of those that the layer ran."""
        return query

    def after_layer(self, hidden: torch.Tensor) -> PackedTokens:
        """Return the same tokens with the hidden states that a layer made of them."""
        return self.with_hidden(hidden)

    def whole(self) -> PackedTokens:
        """Return the tokens with the hidden states of all of them."""
        return self

    def loosen(self, prompts: Iterable[int], entirely: bool = False) -> PackedTokens:
        """Return the tokens with those of `prompts` that a choice changes among the ones that run."""
        return self

    def keep(self, mask: np.ndarray) -> PackedTokens:
        """Return the tokens where `mask` (bool [T]) holds, at their original positions and rotary angles."""
        index = upload(np.flatnonzero(mask), self.hidden.device)
        return PackedTokens(
            self.hidden.index_select(1, index),
            tuple(part.index_select(-2, index.to(part.device)) for part in self.rope),
            tuple(int(mask[a:b].sum()) for a, b in self.spans),
            self.visual[mask],
            self.position[mask],
        )

    def rewrite(self, places: np.ndarray, states: list[torch.Tensor]) -> PackedTokens:
        """Return the same tokens, those at `places` (int [n], in the stream) with other hidden states, n [*, D]."""
        index = upload(places, self.hidden.device)
        new = torch.cat(states).to(self.hidden)[None]
        return self.with_hidden(self.hidden.index_copy(1, index, new))

    def renumber(self, rotary: Rotary) -> PackedTokens:
        """Return the same tokens at the rotary angles of positions counted anew, 0, 1, 2, … in each prompt."""
        places = np.concatenate([np.arange(n) for n in self.lengths])
        rope = tuple(rotary(self.hidden, upload(places, self.hidden.device)[None]))
        return PackedTokens(self.hidden, rope, self.lengths, self.visual, self.position, self._memo)

    def tensor(self, name: Hashable, make: Callable[[], np.ndarray], device: torch.device) -> torch.Tensor:
        """Return the array that `make` builds as a tensor on `device`, made at most once for these tokens."""
        return self._once((name, device), lambda: upload(make(), device))

    def visual_runs(self) -> VisualRuns:
        """Group visual rows by prompt and by the text before them; rows with no text before read themselves.

        `rows` counts the tokens that the layer runs, `keys` all of them.
        """
        return self._once("visual_runs", self._visual_runs)

    def _visual_runs(self) -> VisualRuns:
        keys, queries, counts = [], [], []
        for (start, end), tail in zip(self.spans, self.tails, strict=True):
            visual = self.visual[start:end]
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
        return VisualRuns(np.flatnonzero(self.live_visual), flat, Segments(tuple(queries), tuple(counts)))

    def first_half(self) -> np.ndarray:
        """Return bool [T]: the first ⌊V/2⌋ visual tokens of each prompt."""
        half = np.zeros_like(self.visual)
        for (start, end), count in zip(self.spans, self.visual_counts, strict=True):
            half[start + np.flatnonzero(self.visual[start:end])[: count // 2]] = True
        return half

    def sinks(self, sink: int) -> np.ndarray:
        """Return the place in the stream of visual token number `sink` of each prompt that has visual tokens.

        Raises:
            ValueError: a prompt has visual tokens, but not that many.

        """
        places = []
        for (start, end), count in zip(self.spans, self.visual_counts, strict=True):
            if count and sink >= count:
                raise ValueError(
                    f"'sink_token' is {sink}, but a prompt has only {count} visual tokens; use 0 to {count - 1}"
                )
            if count:
                places.append(start + int(np.flatnonzero(self.visual[start:end])[sink]))
        return np.array(places, int)

    def merge_passes(self, sink: int) -> list[MergePass]:
        """Return whose value each visual column lends when text rows merge into visual token number `sink`.

        One pass serves every row but those that come before the sink (several images, a late sink): each group of
        them merges into the last visual token it sees, in a pass of its own.
        """
        return self._once(("merge", sink), lambda: self._merge_passes(sink))

    def _merge_passes(self, sink: int) -> list[MergePass]:
        places = iter(self.sinks(sink))
        targets: list[dict[int, np.ndarray]] = []
        main = np.arange(len(self.visual))
        for (start, end), count in zip(self.spans, self.visual_counts, strict=True):
            if not count:
                continue
            where = start + np.flatnonzero(self.visual[start:end])
            main[where] = next(places)
            seen = np.cumsum(self.visual[start:end])
            early = ~self.visual[start:end] & (seen > 0) & (seen <= sink)
            targets.append({int(where[c - 1]): start + np.flatnonzero(early & (seen == c)) for c in set(seen[early])})
        passes = [MergePass(main, None)]
        for number in range(max((len(groups) for groups in targets), default=0)):
            source, rows = main.copy(), np.zeros_like(self.visual)
            for groups in targets:
                for place, members in list(groups.items())[number : number + 1]:
                    prompt = int(np.searchsorted(self.starts, place, side="right")) - 1
                    start, end = self.spans[prompt]
                    source[start + np.flatnonzero(self.visual[start:end])] = place
                    rows[members] = True
            passes.append(MergePass(source, rows))
        return passes

    def _once(self, key, make):
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]


def pack(
    embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    visual_mask: torch.Tensor,
    rotary: Rotary,
) -> tuple[PackedTokens, torch.Tensor]:
    """Pack a padded batch (padding on either side). One host synchronisation.

    embeds [B, T, D]; attention_mask [B, T] or None; position_ids [B, T], [1, T], [3, B, T] (M-RoPE) or None for
    counting from 0; visual_mask bool [B, T]; rotary maps (x, position_ids) to (cos, sin).
    Returns the tokens and each prompt's next position, int64 [B].

    Raises:
        ValueError: shapes that do not agree, a mask that is not 2-D, or a prompt without tokens.

    """
    batch, width = embeds.shape[:2]
    if visual_mask.shape != (batch, width):
        raise ValueError(f"visual_mask has shape {tuple(visual_mask.shape)}, expected {(batch, width)} as the prompts")
    if attention_mask is not None and attention_mask.shape != (batch, width):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; pruning takes a 2-D mask, here {(batch, width)}"
        )
    device = embeds.device
    if attention_mask is None:
        attention_mask = torch.ones_like(visual_mask)
    valid, visual = torch.stack((attention_mask.to(device).bool(), visual_mask.to(device).bool())).cpu().numpy()
    lengths = valid.sum(1)
    if not lengths.all():
        raise ValueError(f"prompt {int(np.flatnonzero(lengths == 0)[0])} of the batch has no tokens")
    position = (np.cumsum(valid, 1) - 1)[valid]
    visual = visual[valid]
    visual[np.cumsum(lengths) - 1] = False
    if position_ids is None:
        position_ids = upload(position, device)[None]
        following = upload(lengths, device)
    else:
        position_ids = position_ids.to(device).expand(*position_ids.shape[:-2], batch, width)
        live = position_ids.masked_fill(upload(~valid, device), -1)
        following = live.movedim(-2, 0).flatten(1).amax(1) + 1
    if not valid.all():
        flat = upload(np.flatnonzero(valid), device)
        embeds = embeds.flatten(0, 1).index_select(0, flat)
        if position_ids.shape[-2:] == (batch, width):
            position_ids = position_ids.flatten(-2).index_select(-1, flat).unsqueeze(-2)
    elif position_ids.shape[-2:] == (batch, width):
        position_ids = position_ids.flatten(-2).unsqueeze(-2)
    hidden = embeds.reshape(1, -1, embeds.shape[-1])
    tokens = PackedTokens(hidden, tuple(rotary(hidden, position_ids)), tuple(map(int, lengths)), visual, position)
    return tokens, following


def unpack(hidden: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """Return the stream [1, T, D] as a batch [B, max length, D], zeros on the left of the shorter prompts."""
    width = max(lengths)
    if all(n == width for n in lengths):
        return hidden.view(len(lengths), width, -1)
    batch = hidden.new_zeros(len(lengths) * width, hidden.shape[-1])
    places = upload(left_padded_places(lengths, width), hidden.device)
    return batch.index_copy(0, places, hidden[0]).view(len(lengths), width, -1)


def left_padded_places(lengths: tuple[int, ...], width: int) -> np.ndarray:
    """Return where each packed token lands in the flattened left-padded batch [B · width]: int64 [T]."""
    return np.concatenate([np.arange((b + 1) * width - n, (b + 1) * width) for b, n in enumerate(lengths)])


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return the array as a tensor on `device`; on CUDA the host does not wait for the copy."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
