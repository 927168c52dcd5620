"""`Inputs` of all models: LLaVA's convention, and the processors of transformers' families."""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin

from .base import ImageFeatures, Inputs, ProcessedImage, Turn, left_padded
from .convention import DEFAULT_CONV_MODE, ConventionInputs
from .llava_hf import LlavaHFInputs
from .processor import ProcessorInputs


def inputs_for(tokenizer: Any, processor: Any, model_config: Any, conv_mode: str | None = None) -> Inputs:
    """Return the `Inputs` of a model; the first three arguments come from `load_pretrained_model`.

    `processor`: its third item; `model_config`: the model's `config`; `conv_mode`: LLaVA's conversation template
    (None: the checkpoint's own, else vicuna_v1), for the original layout alone. Raises `ValueError` for an unknown
    template, and for one given with a model that has a chat template.
    """
    if not isinstance(processor, ProcessorMixin):
        conv_mode = conv_mode or model_config.conv_mode or DEFAULT_CONV_MODE
        return ConventionInputs(tokenizer, processor, model_config, conv_mode)
    if conv_mode is not None:
        raise ValueError(
            f"the conversation template {conv_mode!r} (conv_mode) was given, but the prompts of "
            f"{type(processor).__name__} come from its own chat template: leave conv_mode out"
        )
    is_llava = model_config.model_type == "llava" and model_config.get_text_config().model_type == "llama"
    return (LlavaHFInputs if is_llava else ProcessorInputs)(processor, model_config)


__all__ = ["DEFAULT_CONV_MODE", "Inputs", "ProcessedImage", "ImageFeatures", "Turn", "inputs_for", "left_padded"]
