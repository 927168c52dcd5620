"""Logit lens (VisiPruner, Eq. 2): the hidden state after every layer, read through final norm and unembedding.

    words = logit_lens(model, inputs)[0]                 # what the last prompt token would say after each layer
    plot_words(words, tokenizer)

Hidden states are taken where the layers leave them, so the last layer's is normed once like all others; the last entry
of transformers' `hidden_states` is normed already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .projection import Unembedding, Words, captured
from .recording import read


def logit_lens(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    positions: Sequence[int] = (-1,),
    *,
    top: int = 5,
    follow: Sequence[int] = (),
) -> list[Words]:
    """Read the tokens at `positions` after every layer, nothing pruned; one `Words` a prompt, axes (layer, token).

    inputs:
        keywords of the model's `generate` or `forward`
    positions:
        places in the prompt, images expanded; negative from its end: −1 is the last prompt token. Visual tokens too.
    top, follow:
        how many words of each state; ids of tokens whose probability is wanted after every layer

    Raises:
        ValueError: a model without an unembedding, a position that a prompt does not have, an id that is no token.

    """
    unembedding = Unembedding(model, top, follow)
    with captured(unembedding.decoder, unembedding.layers, positions) as states:
        read(model, inputs)
    return [
        unembedding.words([unembedding.read(state[b]) for state in states], ("layer", "token"), {"token": [*positions]})
        for b in range(len(states[0]))
    ]
