"""`PrefixCache`: blocks of rows, found by their content; the least recently used are evicted first."""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..flops import DecoderShape
from ..packed import PackedTokens, upload
from .blocks import Block
from .prefix import Prefix

CACHE_BYTES = 2 << 30
"""Default size: four to five prefixes of LLaVA-1.5-7B in half precision."""


@dataclass
class Reused:
    """What the cache saved since the session began.

    prompts, found:
        prompts with visual tokens, and those whose image was known, from an earlier prompt or another one of the batch
    rows, run:
        tokens that entered layers, and those that layers ran, summed over layers
    """

    prompts: int = 0
    found: int = 0
    rows: int = 0
    run: int = 0

    @property
    def share(self) -> float:
        """Share of the tokens that did not have to run."""
        return 1 - self.run / self.rows if self.rows else 0.0

    def add(self, other: Reused) -> None:
        """Count another session's, too."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, JSON-ready."""
        return dataclasses.asdict(self) | {"share": round(self.share, 4)}


class PrefixCache:
    """Blocks of prompts in at most `max_bytes`; with 0 bytes, prompts of one batch still share.

    A block is found by what enters the layers (embeddings, visual features, rotary angles, which tokens are visual), so
    that another image, another system text or another pruning before the decoder is another block. `attach` empties
    the cache when its `stamp` has changed: blocks hold for one model, its weights, and one config.

    Raises:
        ValueError: a size that is not an integer ≥ 0.

    """

    def __init__(self, max_bytes: int = CACHE_BYTES):
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0:
            raise ValueError(f"the size of a prefix cache is an integer ≥ 0, in bytes; got {max_bytes!r}")
        self.max_bytes = max_bytes
        self.reused = Reused()
        self.nbytes = 0
        self._blocks: OrderedDict[Hashable, Block] = OrderedDict()
        self._turns: dict[Block, list[tuple[np.ndarray, Block]]] = {}
        self._stamp: Hashable = None
        self._weights: dict[tuple[int, torch.device], torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def clear(self) -> None:
        """Forget all blocks; what they saved stays counted."""
        self._blocks.clear()
        self._turns.clear()
        self.nbytes = 0

    def attach(self, tokens: PackedTokens, shape: DecoderShape, stamp: Hashable = None) -> PackedTokens:
        """Return the tokens that enter layer 0 with the blocks that each prompt begins with, known or new."""
        if stamp != self._stamp:
            self.clear()
            self._stamp = stamp
        prints = _Fingerprints(tokens, self._weights)
        asked = [prints.prefixes(b) for b in range(len(tokens.lengths))]
        shared = Counter(key for prefixes in asked for key, *_ in prefixes)
        new: dict[Hashable, Block] = {}
        values_per_row = shape.layers * (2 * shape.kv_heads * shape.head_dim + shape.hidden)
        room = self.max_bytes // (values_per_row * tokens.hidden.itemsize)
        chains = []
        for b, prefixes in enumerate(asked):
            chain: list[Block] = []
            for key, start, end in prefixes:
                block = self._blocks.get(key) or new.get(key)
                known = block is not None
                if block is None:
                    if end > room and shared[key] == 1:
                        break
                    block = new[key] = Block(start, end, settled=end <= prints.first_visual(b), kept=end <= room)
                chain.append(block)
            if prefixes:
                self.reused.prompts += 1
                self.reused.found += known and len(chain) == len(prefixes)
            if len(asked) == 1 and chain and len(chain) == len(prefixes) and chain[-1].kept:
                chain += self._conversation(chain[-1], prints.after(prefixes[-1][2]), room)
            chains.append(tuple(chain))
            self._use(chain, [key for key, *_ in prefixes])
        if not any(chains):
            return tokens
        return replace(tokens, prefix=Prefix(tuple(chains), self.account_and_evict))

    def _use(self, chain: list[Block], keys: list[Hashable]) -> None:
        """Mark blocks as recently used, the first rows last, so that no block outlives the one before it."""
        for place in reversed(range(len(chain))):
            block = chain[place]
            key = keys[place] if place < len(keys) else block
            if block.kept:
                self._blocks[key] = block
                self._blocks.move_to_end(key)

    def _conversation(self, image: Block, rows: np.ndarray, room: int) -> list[Block]:
        """Return the blocks of a lone prompt's text after its image, `rows` [n, 2] of it: known turns and a new block.

        Turns that the prompt does not repeat are forgotten. Its last token is in none, so that it always runs.
        """
        turns, used = [], 0
        for prints, block in self._turns.get(image, []):
            if not block.kept:
                break
            alike = (prints[: len(rows) - used] == rows[used : used + len(prints)]).all(1)
            same = len(alike) if alike.all() else int(alike.argmin())
            if not same:
                break
            if same < len(prints):
                before = block.nbytes
                block.truncate(same)
                self.nbytes += block.nbytes - before
            turns.append((prints[:same], block))
            used += same
            if same < len(prints):
                break
        chain = [block for _, block in turns]
        for _, block in self._turns.get(image, []):
            if block not in chain:
                self._drop(block)
        if used < len(rows) and image.end + len(rows) <= room:
            chain.append(Block(image.end + used, image.end + len(rows), settled=False, kept=True))
            turns.append((rows[used:], chain[-1]))
        self._turns[image] = turns
        return chain

    def account_and_evict(self, tokens: PackedTokens) -> None:
        """Count the rows of the layer that `tokens` ran; evict the least recently used blocks beyond `max_bytes`."""
        self.reused.rows += sum(tokens.lengths)
        self.reused.run += sum(tokens.tails)
        if not any(block.kept for block, _ in tokens.prefix.runs):
            return
        self.nbytes = sum(block.nbytes for block in self._blocks.values())
        while self.nbytes > self.max_bytes:
            block = next(iter(self._blocks.values()))
            self._drop(block)
            block.forget_before(tokens.prefix.layer)  # the batch that runs may still need the newest

    def _drop(self, block: Block) -> None:
        key = next((key for key, held in self._blocks.items() if held is block), None)
        if key is not None:
            del self._blocks[key]
            self.nbytes -= block.nbytes
        block.kept = False
        for _, turn in self._turns.pop(block, []):
            self._drop(turn)


class _Fingerprints:
    """Row fingerprints: two 64-bit checksums per row, over its embedding and rotary angles."""

    def __init__(self, tokens: PackedTokens, weights: dict):
        self.tokens = tokens
        parts = [tokens.hidden[0], *(part.movedim(-2, 0).flatten(1).to(tokens.hidden.device) for part in tokens.rope)]
        parts += [part[0].to(tokens.hidden.device) for part in tokens.added.values()]
        # one prompt at a time: 64-bit integers take two to four times the memory of the states
        sums = [_sums([part[start:end] for part in parts], weights) for start, end in tokens.spans]
        self.rows = torch.cat(sums).cpu().numpy()

    def first_visual(self, b: int) -> int:
        """Place of a prompt's first visual token in it."""
        start, end = self.tokens.spans[b]
        return int(self.tokens.visual[start:end].argmax())

    def prefixes(self, b: int) -> list[tuple[Hashable, int, int]]:
        """Return key, start and end of the text before the images, and of all rows up to the last visual token."""
        start, end = self.tokens.spans[b]
        places = np.flatnonzero(self.tokens.visual[start:end])
        if not len(places):
            return []
        first, last = int(places[0]), int(places[-1]) + 1
        ends = [(0, first), (first, last)] if first else [(0, last)]
        return [(self._key(start, stop), begin, stop) for begin, stop in ends]

    def _key(self, start: int, stop: int) -> bytes:
        layout = (self.tokens.visual, *(() if self.tokens.blocks is None else (self.tokens.blocks,)))
        return b"".join(part[start : start + stop].tobytes() for part in (self.rows, *layout))

    def after(self, place: int) -> np.ndarray:
        """Return the rows [n, 2] of a lone prompt from `place` to the last but one."""
        return self.rows[place:-1]


def _sums(parts: list[torch.Tensor], weights: dict) -> torch.Tensor:
    """Return checksums, int64 [n, 2], of rows in parts [n, *]: bits as integers, times fixed numbers, mod 2^64."""
    words = [part.contiguous().view(torch.int16 if part.itemsize == 2 else torch.int32) for part in parts]
    bits = torch.cat([word.to(torch.int64) for word in words], 1)
    width, device = bits.shape[1], bits.device
    if (width, device) not in weights:
        drawn = np.random.default_rng(width).integers(-(1 << 63), (1 << 63) - 1, (2, width), dtype=np.int64)
        weights[width, device] = upload(drawn | 1, device)
    return torch.stack([(bits * column).sum(1) for column in weights[width, device]], 1)
