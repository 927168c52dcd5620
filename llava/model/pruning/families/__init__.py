"""Model families, one file each: where a model keeps its decoder stack, and which of its tokens are visual."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

import transformers
from torch import nn

from .base import FAMILIES, Family
from .decoder import check_attention, stack_in

for page in iter_modules(__path__):  # each registers its family
    import_module(f"{__name__}.{page.name}")


def family_of(model: nn.Module) -> Family:
    """Return the adapter of `model`'s family.

    Raises:
        ValueError: no family knows this model (the decoder in it that can be pruned by itself is named), or its
            decoder's attention is not one that the engine computes.

    """
    families = sorted(FAMILIES, key=lambda family: family.needs_mask)  # a model with images may be a decoder, too
    for known in families:
        if known.knows(model):
            family = known()
            check_attention(model, family.decoder(model))
            return family
    known = "; ".join(family.models for family in families)
    inside = stack_in(model)
    way_out = "" if inside is None else f"; its decoder can be pruned: prune(model.{inside}, config, visual_mask=mask)"
    raise ValueError(f"pruning does not know {type(model).__name__}; it knows {known}{way_out}")


def model_types() -> dict[str, str | type[nn.Module]]:
    """Return the `model_type` of every layout that transformers loads, and the class that loads it, or its name."""
    return {kind: loads for family in FAMILIES for kind, loads in family.model_types.items()}


def model_class(model_type: str) -> type[nn.Module]:
    """Return the class that loads a layout.

    Raises:
        ValueError: the installed transformers does not have it.

    """
    loads = model_types()[model_type]
    if isinstance(loads, str) and not hasattr(transformers, loads):
        raise ValueError(f"model_type {model_type!r} needs a newer transformers than {transformers.__version__}")
    return getattr(transformers, loads) if isinstance(loads, str) else loads


__all__ = ["FAMILIES", "Family", "family_of", "model_class", "model_types"]
