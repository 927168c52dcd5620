"""`PrefixStore`: the nodes of a session, found by the content of their rows, the least recently used dropped first."""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..flops import DecoderShape
from ..packed import PackedTokens, upload
from .nodes import Node
from .tokens import LiveTokens

CACHE_BYTES = 2 << 30
"""Bytes that prefixes may take unless told otherwise: four to five of LLaVA-1.5-7B in half precision."""


@dataclass
class Reused:
    """What reuse did since the session began.

    prompts, found:
        prompts with visual tokens, and those whose image was known, from an earlier prompt or another one of the batch
    rows, run:
        tokens that entered layers by the traces, and those that layers ran, summed over layers
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


class PrefixStore:
    """What is known of prefixes, in at most `budget` bytes.

    A prefix is known by what enters layer 0 (embeddings, visual features, rotary angles, which tokens are visual), so
    that another image, another system text or another pruning before the decoder is another prefix. `attach` forgets
    everything when its `stamp` is not the one before: what is known holds for one model, its weights, and one config.
    """

    def __init__(self, budget: int, shape: DecoderShape):
        self.budget = budget
        self.reused = Reused()
        self.nbytes = 0
        self._values_a_row = shape.layers * (2 * shape.kv_heads * shape.head_dim + shape.hidden)
        self._nodes: OrderedDict[Hashable, Node] = OrderedDict()
        self._turns: dict[Node, list[tuple[np.ndarray, Node]]] = {}
        self._stamp: Hashable = None
        self._weights: dict[tuple[int, torch.device], torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def clear(self) -> None:
        """Forget all prefixes; what they did stays counted."""
        self._nodes.clear()
        self._turns.clear()
        self.nbytes = 0

    def attach(self, tokens: PackedTokens, stamp: Hashable = None) -> PackedTokens:
        """Return the tokens that enter layer 0 with the nodes that each prompt begins with, known or to be known."""
        if stamp != self._stamp:
            self.clear()
            self._stamp = stamp
        signs = _Signs(tokens, self._weights)
        asked = [signs.prefixes(b) for b in range(len(tokens.lengths))]
        shared = Counter(key for prefixes in asked for key, *_ in prefixes)
        made: dict[Hashable, Node] = {}
        room = self.budget // (self._values_a_row * tokens.hidden.itemsize)
        chains = []
        for b, prefixes in enumerate(asked):
            chain: list[Node] = []
            for key, start, end in prefixes:
                node = self._nodes.get(key) or made.get(key)
                known = node is not None
                if node is None:
                    if end > room and shared[key] == 1:
                        break
                    node = made[key] = Node(start, end, settled=end <= signs.first_visual(b), kept=end <= room)
                chain.append(node)
            if prefixes:
                self.reused.prompts += 1
                self.reused.found += known and len(chain) == len(prefixes)
            if len(asked) == 1 and chain and len(chain) == len(prefixes) and chain[-1].kept:
                chain += self._conversation(chain[-1], signs.after(prefixes[-1][2]), room)
            chains.append(tuple(chain))
            self._use(chain, [key for key, *_ in prefixes])
        if not any(chains):
            return tokens
        return LiveTokens(
            tokens.hidden,
            tokens.rope,
            tokens.lengths,
            tokens.visual,
            tokens.position,
            tails=tokens.lengths,
            chains=tuple(chains),
            store=self,
        )

    def _use(self, chain: list[Node], keys: list[Hashable]) -> None:
        """Mark nodes as used just now, the first rows last: a node never outlives the one before it."""
        for node in reversed(chain):
            place = chain.index(node)
            key = keys[place] if place < len(keys) else node
            if node.kept:
                self._nodes[key] = node
                self._nodes.move_to_end(key)

    def _conversation(self, image: Node, rows: np.ndarray, room: int) -> list[Node]:
        """Return the nodes of what a lone prompt says after its image, `rows` [n, 2] of it: known turns and a new node.

        Turns that the prompt does not repeat are forgotten. Its last token is in none, so that it always runs.
        """
        turns, chain, used = [], [], 0
        for signs, node in self._turns.get(image, []):
            if not node.kept:
                break
            alike = (signs[: len(rows) - used] == rows[used : used + len(signs)]).all(1)
            same = len(alike) if alike.all() else int(alike.argmin())
            if not same:
                break
            if same < len(signs):
                self._shorten(node, same)
            turns.append((signs[:same], node))
            chain.append(node)
            used += same
            if same < len(signs):
                break
        for _, node in self._turns.get(image, []):
            if node not in chain:
                self._drop(node)
        if used < len(rows) and image.end + len(rows) <= room:
            new = Node(image.end + used, image.end + len(rows), settled=False, kept=True)
            turns.append((rows[used:], new))
            chain.append(new)
        self._turns[image] = turns
        return chain

    def _shorten(self, node: Node, rows: int) -> None:
        before = node.nbytes
        node.shorten(rows)
        self.nbytes += node.nbytes - before

    def grew(self, tokens: LiveTokens) -> None:
        """Count what a layer added; drop the least recently used where that is more than the budget."""
        self.reused.rows += sum(tokens.lengths)
        self.reused.run += sum(tokens.tails)
        if not any(node.kept for node, _ in tokens.runs):
            return
        self.nbytes = sum(node.nbytes for node in self._nodes.values())
        while self.nbytes > self.budget:
            node = next(iter(self._nodes.values()))
            self._drop(node)
            node.forget_before(tokens.layer)  # the batch that runs may still need the newest

    def _drop(self, node: Node) -> None:
        key = next((key for key, held in self._nodes.items() if held is node), None)
        if key is not None:
            del self._nodes[key]
            self.nbytes -= node.nbytes
        node.kept = False
        for _, turn in self._turns.pop(node, []):
            self._drop(turn)


class _Signs:
    """What tells the rows of packed prompts apart: two 64-bit sums a row over the bits of its embedding and angles."""

    def __init__(self, tokens: PackedTokens, weights: dict):
        self.tokens = tokens
        parts = [tokens.hidden[0], *(part.movedim(-2, 0).flatten(1).to(tokens.hidden.device) for part in tokens.rope)]
        # one prompt at a time: integers of 64 bits take two to four times the room of what they are made of
        sums = [_sums([part[start:end] for part in parts], weights) for start, end in tokens.spans]
        self.rows = torch.cat(sums).cpu().numpy()

    def first_visual(self, b: int) -> int:
        """Place of a prompt's first visual token in it."""
        start, end = self.tokens.spans[b]
        return int(self.tokens.visual[start:end].argmax())

    def prefixes(self, b: int) -> list[tuple[Hashable, int, int]]:
        """Key, start and end of the text before the images, and of all up to the last visual token."""
        start, end = self.tokens.spans[b]
        places = np.flatnonzero(self.tokens.visual[start:end])
        if not len(places):
            return []
        first, last = int(places[0]), int(places[-1]) + 1
        found = [(0, first)] if first else []
        return [(self._key(start, stop), begin, stop) for begin, stop in [*found, (first, last)]]

    def _key(self, start: int, stop: int) -> bytes:
        return self.rows[start : start + stop].tobytes() + self.tokens.visual[start : start + stop].tobytes()

    def after(self, place: int) -> np.ndarray:
        """Return the rows [n, 2] of a lone prompt from `place` to the last but one."""
        return self.rows[place:-1]


def _sums(parts: list[torch.Tensor], weights: dict) -> torch.Tensor:
    """Return int64 [n, 2] of rows in parts [n, *]: their bits as integers, weighted by fixed numbers, modulo 2^64."""
    words = [part.contiguous().view(torch.int16 if part.itemsize == 2 else torch.int32) for part in parts]
    bits = torch.cat([word.to(torch.int64) for word in words], 1)
    width, device = bits.shape[1], bits.device
    if (width, device) not in weights:
        drawn = np.random.default_rng(width).integers(-(1 << 63), (1 << 63) - 1, (2, width), dtype=np.int64)
        weights[width, device] = upload(drawn | 1, device)
    return torch.stack([(bits * column).sum(1) for column in weights[width, device]], 1)
