"""Model families: where a model keeps its decoder stack, and which of its tokens are visual. One page each."""

from __future__ import annotations

from torch import nn

from .base import Family
from .decoder import BareDecoder
from .llava import Llava
from .llava_hf import LlavaHF

FAMILIES: tuple[type[Family], ...] = (Llava, LlavaHF, BareDecoder)


def family_of(model: nn.Module) -> Family:
    """Return the adapter of `model`'s family.

    Raises:
        ValueError: no family knows this model.

    """
    for family in FAMILIES:
        if family.knows(model):
            return family()
    known = "; ".join(family.models for family in FAMILIES)
    raise ValueError(f"pruning does not know {type(model).__name__}; it knows {known}")


__all__ = ["FAMILIES", "Family", "family_of"]
