"""Model families: where a model keeps its decoder stack, and which of its tokens are visual. One page each."""

from __future__ import annotations

from torch import nn

from .attention_types import check_attention
from .base import Family
from .decoder import BareDecoder, stack_in
from .internvl import InternVL
from .llava import Llava
from .llava_hf import LlavaHF
from .llava_next import LlavaNext
from .llava_onevision import LlavaOnevision
from .qwen2_vl import Qwen2VL

FAMILIES: tuple[type[Family], ...] = (Llava, LlavaHF, LlavaNext, LlavaOnevision, InternVL, Qwen2VL, BareDecoder)


def family_of(model: nn.Module) -> Family:
    """Return the adapter of `model`'s family.

    Raises:
        ValueError: no family knows this model (the decoder in it that can be pruned by itself is named), or its
            decoder's attention is not one that the engine computes.

    """
    for known in FAMILIES:
        if known.knows(model):
            family = known()
            check_attention(model, family.decoder(model))
            return family
    known = "; ".join(family.models for family in FAMILIES)
    inside = stack_in(model)
    way_out = "" if inside is None else f"; its decoder can be pruned: prune(model.{inside}, config, visual_mask=mask)"
    raise ValueError(f"pruning does not know {type(model).__name__}; it knows {known}{way_out}")


__all__ = ["FAMILIES", "Family", "family_of"]
