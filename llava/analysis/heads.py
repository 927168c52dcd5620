"""Value–output projection (VisiPruner, Eqs. 3 and 9): a token's value vectors in word space, per head: W_u · (V · O).

    words = value_output(model, inputs)[0]       # of the last prompt token, every layer and head
    words.text(tokenizer).at(layer=5, head=0)

A head that attends to this token would write these words into the residual stream: its value vector, through the head's
own columns of the output projection, read as logits. Grouped-query heads share values and have columns of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .lens import Unembedding, Words, captured
from .recording import read


def value_output(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    position: int = -1,
    *,
    top: int = 5,
    follow: Sequence[int] = (),
    norm: bool = True,
) -> list[Words]:
    """Project the value vectors of the token at `position`, dense; one `Words` per prompt, axes (layer, head).

    position:
        place in the prompt, images expanded; negative from its end: −1 is the last prompt token
    norm:
        through the decoder's final norm before the unembedding, as the code published with the paper does; its
        equations have none. The norm's weights change which words come first, its scale how sharp they are.

    Raises:
        ValueError: a model without an unembedding, a layer without attention, a position that a prompt does not have,
            an id that is no token.

    """
    unembedding = Unembedding(model, top, follow)
    attentions = [getattr(layer, "self_attn", None) for layer in unembedding.layers]
    if None in attentions:
        raise ValueError(f"layer {attentions.index(None)} of {type(model).__name__} has no attention heads to read")
    projections = [attention.v_proj for attention in attentions]
    with captured(unembedding.decoder, projections, [position], inputs.get("attention_mask")) as values:
        read(model, inputs)
    words = []
    for b in range(len(values[0])):
        parts = [
            unembedding.read(head_outputs(attention, value[b, 0]), norm)
            for attention, value in zip(attentions, values, strict=True)
        ]
        words.append(unembedding.words(parts, ("layer", "head"), {}))
    return words


@torch.no_grad()
def head_outputs(attention: torch.nn.Module, value: torch.Tensor) -> torch.Tensor:
    """Return what each head would add to the residual stream if it attended to one token alone: fp32 [H, D].

    value [Hkv · d]: the token's value vectors; `attention` has `head_dim` and an `o_proj` without bias.
    """
    weight = attention.o_proj.weight.float()  # [D, H · d]
    heads = weight.unflatten(1, (-1, attention.head_dim))  # [D, H, d]
    vectors = value.float().view(-1, attention.head_dim)  # [Hkv, d]
    vectors = vectors.repeat_interleave(heads.shape[1] // len(vectors), 0)
    return torch.einsum("khd,hd->hk", heads, vectors.to(weight.device))
