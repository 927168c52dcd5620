"""Probes of one layer: attention of chosen tokens to everything before them, and L1 norms of value vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from llava.model.pruning.packed import PackedTokens, upload
from llava.model.pruning.probes import LayerStates, Probe

MAX_ROWS = 64
"""Rows of attention that one call may ask for: all of them at once would be L×H×T×T."""


class Attention(NamedTuple):
    """Attention of chosen tokens at one layer.

    weights:
        fp32 [n, H, T_l]; columns are the tokens that the layer ran with
    columns:
        int [T_l], their positions in the prompt
    """

    weights: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True)
class AttentionRows(Probe):
    """Dense causal attention of the tokens at `positions` in the prompt (negative: from its end).

    Each must be a token that the layer ran with.
    """

    positions: tuple[int, ...] = (-1,)

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return [n, H, T_l] of each prompt."""
        return [self._rows(states, prompt) for prompt in prompts]

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[Attention]:
        """Return an `Attention` of each prompt."""
        spans = (states.tokens.spans[prompt] for prompt in prompts)
        return [
            Attention(array, states.tokens.position[start:end])
            for array, (start, end) in zip(arrays, spans, strict=True)
        ]

    def _rows(self, states: LayerStates, prompt: int) -> torch.Tensor:
        start, end = states.tokens.spans[prompt]
        places = _places(states.tokens, prompt, self.positions)
        device, kv_heads = states.query.device, states.key.shape[1]
        rows = upload(places, device)
        query = states.query[0].index_select(1, start + rows).float().unflatten(0, (kv_heads, -1))  # [Hkv, g, n, d]
        scores = query @ states.key[0, :, None, start:end].float().transpose(-1, -2) * states.scaling
        later = torch.arange(end - start, device=device) > rows[:, None]
        return scores.masked_fill(later, float("-inf")).softmax(-1).flatten(0, 1).transpose(0, 1)  # [n, H, T_l]


@dataclass(frozen=True)
class ValueNorms(Probe):
    """L1 norm of the value vector of every token that the layer ran with: fp32 [Hkv, T_l], by key–value head."""

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return [Hkv, T_l] of each prompt."""
        spans = (states.tokens.spans[prompt] for prompt in prompts)
        return [states.value[0, :, start:end].float().abs().sum(-1) for start, end in spans]

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return one array a prompt."""
        return list(arrays)


def check_rows(positions: Sequence[int]) -> tuple[int, ...]:
    """Return positions whose attention is asked for; `ValueError` for none and for too many."""
    positions = tuple(int(position) for position in positions)
    if not 0 < len(positions) <= MAX_ROWS:
        raise ValueError(f"attention of {len(positions)} tokens was asked for: give 1 to {MAX_ROWS} positions a call")
    return positions


def _places(tokens: PackedTokens, prompt: int, positions: tuple[int, ...]) -> np.ndarray:
    """Return where in the prompt's part of the stream the tokens at these positions are: int [n].

    Raises `ValueError` where the prompt has no such token, or no longer.
    """
    start, end = tokens.spans[prompt]
    present = tokens.position[start:end]
    length = int(present[-1]) + 1
    wanted = np.array([length + position if position < 0 else position for position in positions])
    places = np.searchsorted(present, wanted)
    lost = [p for p, place in zip(wanted, places, strict=True) if place == len(present) or present[place] != p]
    if lost:
        raise ValueError(f"position {lost[0]} is not among the {len(present)} tokens of prompt {prompt} at this layer")
    return places
