"""Influence of visual tokens on the last prompt token (VisiPruner, arXiv 2510.17205, section 4): cosine and L2.

With A the last token's attention, v the values and O its attention output (heads concatenated, before `o_proj`),
visual token j contributes c_j = concat_h(A[h, j] · v[h, j]); cos_j = cos(O, O − c_j), l2_j = ‖c_j‖. No c_j is formed:
‖c_j‖² = Σ_h A[h, j]² ‖v[h, j]‖² and O·c_j = Σ_h A[h, j] (O_h · v[h, j]).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from .packed import PackedTokens, upload
from .probes import LayerStates, Probe, rows_of
from .reading import is_plain, seen_by


class Measurement(NamedTuple):
    """What was measured of one prompt's visual tokens at one layer; fp32 [V], V visual tokens now.

    cosine:
        cos(O, O − c_j), O the attention output of the last prompt token (heads concatenated, before `o_proj`) and
        c_j the part that visual token j contributes to it
    l2:
        ‖c_j‖₂
    attention:
        attention of the last prompt token to token j, averaged over heads
    """

    cosine: np.ndarray
    l2: np.ndarray
    attention: np.ndarray


@dataclass(frozen=True)
class Influence(Probe):
    """Influence of a prompt's visual tokens on its last token: a `Measurement`."""

    last_row = True

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> tuple[torch.Tensor]:
        """Measure the prompts together: fp32 [3, b, L], L the longest of them."""
        return (_figures(states, prompts),)

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[Measurement]:
        """Pick each prompt's visual tokens out of its padded row."""
        tokens = states.tokens
        return [
            Measurement(*arrays[0][:, row, np.flatnonzero(tokens.visual[slice(*tokens.spans[b])])])
            for row, b in enumerate(prompts)
        ]


@dataclass(frozen=True)
class RelativeInfluence(Influence):
    """As `Influence`, its `l2` divided by ‖O‖: a number that the scale of a model's values does not change.

    With every value vector of a layer multiplied by s, ‖c_j‖ grows s-fold; cos_j and ‖c_j‖ / ‖O‖ stay. The last token's
    attention is formed a second time for ‖O‖.
    """

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        """Measure the prompts together, and ‖O‖ of each: fp32 [b]."""
        return (*super().measure(states, prompts), torch.stack([_output_norm(states, b) for b in prompts]))

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[Measurement]:
        """Divide each prompt's L2 by its own ‖O‖."""
        absolute = super().results(states, prompts, arrays)
        return [one._replace(l2=one.l2 / norm) for one, norm in zip(absolute, arrays[1], strict=True)]


@dataclass(frozen=True)
class AnswerInfluence(Influence):
    """As `Influence`, on the rows before each answer that labels mark, averaged over them."""

    last_row = False

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Measure row by row, each as the last one of what it reads: fp32 [3, V] of each prompt."""
        return [self._mean(states, b) for b in prompts]

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[Measurement]:
        """Return the rows' means."""
        return [Measurement(*array) for array in arrays]

    def _mean(self, states: LayerStates, prompt: int) -> torch.Tensor:
        start, end = states.tokens.spans[prompt]
        columns = np.flatnonzero(states.tokens.visual[start:end])
        total = torch.zeros(3, len(columns), device=states.query.device)
        rows = rows_of(states.tokens, prompt, "answers")
        for row in rows:
            read, seen = slice(start, start + int(row) + 1), columns[columns <= row]
            q, k, v = (part[:, :, read] for part in (states.query, states.key, states.value))
            alone = replace(states, tokens=_first_rows(states.tokens, read), query=q, key=k, value=v)
            total[:, : len(seen)] += _figures(alone, (0,))[:, 0, seen]
        return total / len(rows)


def _first_rows(tokens: PackedTokens, rows: slice) -> PackedTokens:
    """Return the layout of a prompt's first rows, `rows` of the stream; hidden states and angles are not cut."""
    length = (rows.stop - rows.start,)
    blocks = None if tokens.blocks is None else tokens.blocks[rows]
    cut = {"visual": tokens.visual[rows], "position": tokens.position[rows], "blocks": blocks}
    return replace(tokens, lengths=length, tails=length, **cut, _memo={})


def _output_norm(states: LayerStates, prompt: int) -> torch.Tensor:
    """Return ‖O‖ of a prompt's last token, its heads concatenated: fp32 []."""
    start, end = states.tokens.spans[prompt]
    key, value = (part[0, :, start:end].float() for part in (states.key, states.value))  # [Hkv, L, d]
    query = states.query[0, :, end - 1].float().unflatten(0, (len(key), -1))  # [Hkv, g, d]
    unseen = None
    if not is_plain(states.tokens, states.kind):
        unseen = upload(_unseen(states, (prompt,))[0], query.device)
    weights = states.softmax.weights(query @ key.transpose(-1, -2), unseen, (len(key), -1, 1))
    return (weights @ value).norm().clamp_min(1e-8)


def _figures(states: LayerStates, prompts: tuple[int, ...]) -> torch.Tensor:
    """Return cosine, L2 and mean attention of every token of the prompts, fp32 [3, b, L], padded on the right."""
    query, key, value, tokens = states.query, states.key, states.value, states.tokens
    spans = [tokens.spans[b] for b in prompts]
    heads, kv_heads, device = query.shape[1], key.shape[1], query.device
    last = tokens.tensor(("last", prompts), lambda: np.array([end - 1 for _, end in spans]), device)
    q = query[0].transpose(0, 1).index_select(0, last).float()  # [b, H, d]
    q = q.unflatten(1, (kv_heads, heads // kv_heads)).transpose(0, 1)  # [Hkv, b, g, d]
    if len(spans) == 1:
        (start, end), unseen = spans[0], None
        k, v = (states[0, :, None, start:end].float() for states in (key, value))  # [Hkv, b, L, d]
    else:
        places = tokens.tensor(("places", prompts), lambda: _padded(spans)[0], device)
        unseen = tokens.tensor(("padding", prompts), lambda: _padded(spans)[1], device)
        k, v = (_gather(states, places) for states in (key, value))
    if not is_plain(tokens, states.kind):
        unseen = tokens.tensor(("unseen", prompts, states.kind), lambda: _unseen(states, prompts), device)
    products = q @ k.transpose(-1, -2)  # [Hkv, b, g, L]
    weights = states.softmax.weights(products, unseen if unseen is None else unseen[:, None], (kv_heads, 1, -1, 1))
    output = weights @ v  # [Hkv, b, g, d]
    contribution2 = (weights.square().sum(2) * v.square().sum(-1)).sum(0)  # [b, L]
    along = (weights * (output @ v.transpose(-1, -2))).sum((0, 2))
    output2 = output.square().sum((0, 2, 3))[:, None]  # [b, 1]
    rest2 = (output2 - 2 * along + contribution2).clamp_min(0)
    cosine = (output2 - along) / (output2 * rest2).sqrt().clamp_min(1e-8)
    return torch.stack((cosine, contribution2.sqrt(), weights.mean((0, 2))))


def _unseen(states: LayerStates, prompts: tuple[int, ...]) -> np.ndarray:
    """Return which tokens the last row of each prompt does not see, padding included: bool [b, L]."""
    tokens = states.tokens
    lengths = [tokens.lengths[b] for b in prompts]
    unseen = np.ones((len(prompts), max(lengths)), bool)
    for row, (b, length) in enumerate(zip(prompts, lengths, strict=True)):
        unseen[row, :length] = ~seen_by(tokens, b, np.array([length - 1]), states.kind)
    return unseen


def _gather(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return [1, Hkv, T, d] at places [b, L] as fp32 [Hkv, b, L, d]; rows of the stream are read whole."""
    rows = states[0].transpose(0, 1).flatten(1).index_select(0, places.flatten())
    return rows.view(*places.shape, states.shape[1], -1).permute(2, 0, 1, 3).float().contiguous()


def _padded(spans: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return places in the stream, int64 [b, L], prompts padded on the right by their own start, and the padding."""
    starts, ends = np.array(spans).T[..., None]
    places = starts + np.arange((ends - starts).max())
    padding = places >= ends
    return np.where(padding, starts, places), padding
