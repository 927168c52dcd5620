"""Recurrent layers (gated delta rule, short convolutions): one scan per prompt over its rows; the states are the cache.

A row that was dropped is not read, prompts of a packed stream do not see each other, and what a prompt leaves behind
does not grow with its length: nothing is there to rank visual tokens by.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, LinearAttentionLayer

from .attention import run_layer
from .packed import PackedTokens


def scan(
    layer: torch.nn.Module, index: int, tokens: PackedTokens, kwargs: dict[str, Any], keep: bool
) -> tuple[torch.Tensor, LinearAttentionLayer | None]:
    """Return what layer number `index` makes of the tokens, [1, T, D], and for `keep` its states [B, …] afterwards."""
    outputs, states = [], []
    for start, end in tokens.spans:
        cache = None
        if keep:
            states.append(LinearAttentionLayer(number_of_states=_states_of(layer)))
            cache = Cache(layers=[states[-1]] * (index + 1))  # the layer finds its own by its number
        outputs.append(run_layer(layer, tokens.hidden[:, start:end], None, None, kwargs, cache))
    hidden = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
    return hidden, _joined(states) if keep else None


def _states_of(layer: torch.nn.Module) -> int:
    configs = (getattr(part, "config", None) for part in layer.modules())
    return max((getattr(config, "number_of_conv_states", 1) for config in configs if config is not None), default=1)


def _joined(states: list[LinearAttentionLayer]) -> LinearAttentionLayer:
    """Return the states of all prompts as those of a batch."""
    first = states[0]
    for kind in ("conv_states", "recurrent_states") if len(states) > 1 else ():
        for number, state in getattr(first, kind).items():
            if state is not None:
                getattr(first, kind)[number] = torch.cat([getattr(one, kind)[number] for one in states])
    return first


def nbytes(states: LinearAttentionLayer) -> int:
    """Bytes of a layer's convolution and recurrent states."""
    parts = (*states.conv_states.values(), *states.recurrent_states.values())
    return sum(part.nbytes for part in parts if part is not None)
