"""`Probe`: a measurement at a layer, computed on the device and fetched once by the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from .layers import PLAIN, LayerKind
from .packed import PackedTokens, upload
from .reading import is_plain, seen_by
from .softmax import SCALED, Softmax

CHUNK = 64
"""Rows of attention that are formed at a time."""


@dataclass(frozen=True, eq=False)
class LayerStates:
    """What a probe sees after a layer.

    tokens:
        the tokens that the layer ran with; `tokens.hidden` is its output, before layer 0 the embeddings
    query, key, value:
        [1, H, T, d] and twice [1, Hkv, T, d] of that layer after rotary embedding; None before layer 0
    softmax, kind:
        how the layer makes weights of its scores, and what it reads
    peek:
        makes the same states of the *next* layer, `query` and `key` of the tokens as they would enter it
    vision:
        what the image encoder left behind (`EncoderStates` by prompt), before layer 0 and where the method asks for it
    """

    tokens: PackedTokens
    query: torch.Tensor | None = None
    key: torch.Tensor | None = None
    value: torch.Tensor | None = None
    softmax: Softmax = SCALED
    kind: LayerKind = PLAIN
    peek: Callable[[], LayerStates] | None = None
    vision: Any = None


class Probe:
    """A measurement requested by a method; subclasses are frozen dataclasses, so equal probes run together.

    last_row:
        whether it reads no query but the last one of each prompt, and no hidden states; keys and values of all tokens
        it may read. Where a prefix is reused, other queries and hidden states have to be kept, or run again, for it.
    """

    last_row = False
    reads_attention: ClassVar[bool] = True
    """Whether it needs query, key and value, which recurrent layers do not have: it then waits for a layer that has."""
    ahead = False
    """Whether it needs them of the next layer."""

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> Sequence[torch.Tensor]:
        """Return tensors from which `results` makes the prompts' results, without waiting for the device."""
        raise NotImplementedError

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[Any]:
        """Return one result per prompt from the fetched fp32 tensors; by default the tensor itself."""
        return list(arrays)


def fetch(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Bring tensors of one device to the host as fp32 arrays: one transfer, one synchronisation."""
    if not tensors:
        return []
    if len(tensors) == 1:  # the usual case: nothing to join, and no launch for it in every probed layer
        return [tensors[0].detach().float().cpu().numpy()]
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])[:-1]
    return [part.reshape(tuple(like.shape)) for part, like in zip(np.split(flat, ends), tensors, strict=True)]


@torch.no_grad()
def run(states: LayerStates, asked: dict[int, Probe]) -> dict[int, Any]:
    """Run the probes that prompts ask for, in fp32 and with one host synchronisation; results by prompt."""
    groups: dict[Probe, list[int]] = {}
    for prompt, probe in asked.items():
        groups.setdefault(probe, []).append(prompt)
    device = states.tokens.hidden.device
    with torch.autocast(device.type, enabled=False):
        measured = {probe: probe.measure(states, tuple(prompts)) for probe, prompts in groups.items()}
    arrays = iter(fetch([tensor for tensors in measured.values() for tensor in tensors]))
    found: dict[int, Any] = {}
    for probe, prompts in groups.items():
        own = [next(arrays) for _ in measured[probe]]
        found |= zip(prompts, probe.results(states, tuple(prompts), own), strict=True)
    return found


class Attention(NamedTuple):
    """Attention that visual tokens receive, fp32 [V] by the kind of rows."""

    last: np.ndarray | None = None
    text: np.ndarray | None = None
    visual: np.ndarray | None = None
    answers: np.ndarray | None = None


@dataclass(frozen=True)
class AttentionProbe(Probe):
    """Attention that a prompt's visual tokens receive, from one or more kinds of rows.

    rows:
        kinds: `last` the last prompt token · `text` the mean over text rows after the first visual token · `visual`
        the mean over the visual rows · `answers` the mean over the rows before each answer, where labels mark any
    heads:
        of each row's heads, the `mean` or the `max`
    ahead:
        measured with query and key of the next layer, on the tokens as they would enter it
    """

    rows: tuple[Literal["last", "text", "visual", "answers"], ...]
    heads: Literal["mean", "max"]
    ahead: bool

    def __init__(self, *rows: str, heads: str = "mean", ahead: bool = False):
        for name, value in (("rows", rows or ("last",)), ("heads", heads), ("ahead", ahead)):
            object.__setattr__(self, name, value)

    @property
    def last_row(self) -> bool:
        """True where the last prompt token alone is asked for."""
        return self.rows == ("last",)

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return [kinds, V] of each prompt."""
        states = states.peek() if self.ahead else states
        return [torch.stack([self._mean(states, b, kind) for kind in self.rows]) for b in prompts]

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[Attention]:
        """Return an `Attention` of each prompt."""
        return [Attention(**dict(zip(self.rows, array, strict=True))) for array in arrays]

    def _mean(self, states: LayerStates, prompt: int, kind: str) -> torch.Tensor:
        rows = rows_of(states.tokens, prompt, kind)
        total = sum(part.sum(0) for part in attention_to_visual(states, prompt, rows, self.heads))
        return total / len(rows)


def rows_of(tokens: PackedTokens, prompt: int, kind: str) -> np.ndarray:
    """Return the places of a prompt's rows of one kind (see `AttentionProbe`), counted from its own first token."""
    start, end = tokens.spans[prompt]
    visual = tokens.visual[start:end]
    if kind == "last":
        return np.array([end - start - 1])
    if kind == "answers":
        return np.flatnonzero(tokens.answers[start:end]) - 1
    return np.flatnonzero(visual if kind == "visual" else ~visual & (np.cumsum(visual) > 0))


def attention_to_visual(states: LayerStates, prompt: int, rows: np.ndarray, heads: Literal["mean", "max"]):
    """Yield fp32 [n, V]: the attention of a prompt's rows to its visual tokens, `CHUNK` rows at a time.

    The softmax runs over all tokens that a row sees; `rows` are places counted from the prompt's first token.
    """
    tokens, device = states.tokens, states.query.device
    start, end = tokens.spans[prompt]
    kv_heads = states.key.shape[1]
    key = states.key[0, :, None, start:end].float()  # [Hkv, 1, L, d]
    columns = upload(np.flatnonzero(tokens.visual[start:end]), device)
    places = upload(rows, device)
    query = states.query[0].index_select(1, start + places).float().unflatten(0, (kv_heads, -1))  # [Hkv, g, R, d]
    plain = is_plain(tokens, states.kind)
    seen = torch.arange(end - start, device=device)
    for first in range(0, len(rows), CHUNK):
        some = slice(first, first + CHUNK)
        unseen = seen > places[some, None]
        if not plain:
            unseen = upload(~seen_by(tokens, prompt, rows[some], states.kind), device)
        weights = states.softmax.weights(query[:, :, some] @ key.transpose(-1, -2), unseen, (kv_heads, -1, 1, 1))
        weights = weights.index_select(-1, columns).flatten(0, 1)
        yield weights.mean(0) if heads == "mean" else weights.amax(0)
