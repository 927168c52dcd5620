"""Model families, one file each: where a model keeps its decoder stack, and which of its tokens are visual."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

import transformers
from torch import nn

from ..flops import DecoderShape
from .any_model import AnyModel, obstacle_of
from .base import FAMILIES, Family
from .decoder import check_attention, plain

for page in iter_modules(__path__):  # each registers its family
    if page.name != "__main__":
        import_module(f"{__name__}.{page.name}")


def family_of(model: nn.Module) -> Family:
    """Return the adapter of `model`'s family, or the one for any model whose prompt holds visual tokens.

    Raises:
        ValueError: nothing can be pruned in this model.

    """
    families = sorted(FAMILIES, key=lambda family: family.needs_mask)  # a model with images may be a decoder, too
    for known in families:
        if known.knows(model):
            return known()
    if (obstacle := obstacle_of(model)) is None:
        return AnyModel.of(model)
    listed = "python -m llava.model.pruning.families lists the models that can be pruned"
    raise ValueError(f"pruning cannot serve {type(model).__name__}: {obstacle}; {listed}")


def decoder_obstacle(model: nn.Module, family: Family) -> str | None:
    """Why the engine does not run the decoder of `model`, so that its inputs alone can be pruned; None if it does."""
    decoder = family.decoder(model)
    if isinstance(family, AnyModel) and not plain(decoder):
        return f"no page of llava/model/pruning/families says what its decoder {type(decoder).__name__} does"
    try:
        check_attention(model, decoder)
    except ValueError as error:
        return str(error)
    return None


def shape_of(model: nn.Module) -> DecoderShape:
    """Return the dimensions of the model's decoder, of each layer what it is where the engine runs it."""
    family = family_of(model)
    decoder = family.decoder(model)
    if decoder_obstacle(model, family) is None:
        return DecoderShape.of_decoder(decoder, family.layers(decoder))
    return DecoderShape.of(decoder.config)


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


__all__ = ["FAMILIES", "Family", "decoder_obstacle", "family_of", "model_class", "model_types", "shape_of"]
