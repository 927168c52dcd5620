"""Attention maps: attention of any token of a prompt to all tokens before it, or to its visual tokens alone.

    attention = attention_map(model, inputs)[0]  # the last prompt token of the first prompt, every layer and head
    plot_over_picture(attention.mean("head").at(row=0), prompt.view)

Only the chosen rows are formed, layer by layer. VisiPruner (arXiv 2510.17205) warns about such maps: in shallow layers
attention to the image is a sink, in the middle ones it does not find the tokens that matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from llava.model.pruning.packed import PackedTokens, upload
from llava.model.pruning.probes import LayerStates, Probe
from llava.model.pruning.reading import seen_by

from .arrays import NamedArray
from .recording import record

MAX_ROWS = 64
"""Rows of attention that one call may ask for: all of them at once would be L×H×T×T."""


def attention_map(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    positions: Sequence[int] = (-1,),
    *,
    columns: str = "visual",
    visual_mask: torch.Tensor | None = None,
) -> list[NamedArray]:
    """Return the dense attention of the tokens at `positions`, one array per prompt.

    positions:
        places in the prompt, images expanded; negative from its end: −1 is the last prompt token
    columns:
        `visual`: its visual tokens; `all`: every token

    Returns fp32 arrays with axes (layer, row, head, token), tokens labelled with their positions, layers with their
    numbers: those that have attention. The softmax runs over all tokens that a row sees; later tokens weigh 0.

    Raises:
        ValueError: positions that a prompt does not have, more than `MAX_ROWS` of them, a prompt without an image.

    """
    if columns not in ("visual", "all"):
        raise ValueError(f"columns must be 'visual' or 'all', got {columns!r}")
    arrays = []
    for prompt, _ in record(model, inputs, AttentionRows.of(positions), visual_mask=visual_mask):
        layers = [prompt.measured[layer] for layer in sorted(prompt.measured)]
        chosen = prompt.visual if columns == "visual" else layers[0].columns
        weights = np.stack([layer.weights[..., chosen] for layer in layers])
        labels = {"layer": sorted(prompt.measured), "row": list(positions), "token": chosen.tolist()}
        arrays.append(NamedArray(weights, ("layer", "row", "head", "token"), labels))
    return arrays


def visual_share(attention: NamedArray) -> NamedArray:
    """Return the share of each row's attention that goes to the tokens of the map."""
    return attention.sum("token")


class Attention(NamedTuple):
    """Attention of chosen tokens at one layer: fp32 weights [n, H, T_l] over the tokens at positions columns [T_l]."""

    weights: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True)
class AttentionRows(Probe):
    """Dense causal attention of the tokens at `positions` in the prompt (negative: from its end).

    Each must be a token that the layer ran with.
    """

    positions: tuple[int, ...] = (-1,)

    @classmethod
    def of(cls, positions: Sequence[int]) -> AttentionRows:
        """Return the probe; `ValueError` for no position and for too many."""
        if not 0 < len(positions) <= MAX_ROWS:
            raise ValueError(f"attention of {len(positions)} tokens was asked for: give 1 to {MAX_ROWS} positions")
        return cls(tuple(map(int, positions)))

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return [n, H, T_l] of each prompt."""
        return [self._rows(states, prompt) for prompt in prompts]

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[Attention]:
        """Return an `Attention` of each prompt."""
        spans = (slice(*states.tokens.spans[prompt]) for prompt in prompts)
        return [Attention(array, states.tokens.position[span]) for array, span in zip(arrays, spans, strict=True)]

    def _rows(self, states: LayerStates, prompt: int) -> torch.Tensor:
        start, end = states.tokens.spans[prompt]
        device, kv_heads = states.query.device, states.key.shape[1]
        places = _places(states.tokens, prompt, self.positions)
        rows = upload(places, device)
        query = states.query[0].index_select(1, start + rows).float().unflatten(0, (kv_heads, -1))  # [Hkv, g, n, d]
        products = query @ states.key[0, :, None, start:end].float().transpose(-1, -2)
        unseen = upload(~seen_by(states.tokens, prompt, places, states.kind), device)
        weights = states.softmax.weights(products, unseen, (kv_heads, -1, 1, 1))
        return weights.flatten(0, 1).transpose(0, 1)  # [n, H, T_l]


def _places(tokens: PackedTokens, prompt: int, positions: tuple[int, ...]) -> np.ndarray:
    """Return the indices of these positions in the prompt's segment of the packed stream: int [n].

    Raises `ValueError` where the prompt has no such token, or no longer.
    """
    present = tokens.position[slice(*tokens.spans[prompt])]
    length = int(present[-1]) + 1
    wanted = np.array([length + position if position < 0 else position for position in positions])
    places = np.searchsorted(present, wanted)
    lost = [p for p, place in zip(wanted, places, strict=True) if place == len(present) or present[place] != p]
    if lost:
        raise ValueError(f"position {lost[0]} is not among the {len(present)} tokens of prompt {prompt} at this layer")
    return places
