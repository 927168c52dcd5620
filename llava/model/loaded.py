"""`LoadedModel`: a model with tokenizer, processor and `Inputs`, loaded from a command's options."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llava.cli import ModelOptions
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.inputs import Inputs, inputs_for


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, its name, and what turns questions and images into its inputs and its output into text.

    `processor`: the family's processor, or the image processor of LLaVA's original layout; `context_len`: tokens that a
    prompt and its answer may have together, images included. The model runs as its caller says: in `generate`, too,
    dense outside `prune`, whatever it was trained with.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    processor: Any
    context_len: int
    inputs: Inputs

    @classmethod
    def from_path(cls, options: ModelOptions, dtype: torch.dtype | None = None, **more: Any) -> LoadedModel:
        """Load the model that `options` name (`dtype` in place of theirs); `more` are for `load_pretrained_model`.

        Raises `ValueError` as `load_pretrained_model` and `inputs_for` do; `check_model` finds most mistakes earlier.
        """
        path = os.path.expanduser(options.model_path)
        name = get_model_name_from_path(path)
        pixels = {key: getattr(options, key) for key in ("min_pixels", "max_pixels")}
        tokenizer, model, processor, context_len = load_pretrained_model(
            path,
            options.model_base,
            name,
            options.load_8bit,
            options.load_4bit,
            device=options.device,
            dtype=dtype or options.dtype,
            **{key: value for key, value in pixels.items() if value is not None},
            **more,
        )
        model.config.visual_schedule = None  # which `generate` of LLaVA's layout would run by itself
        inputs = inputs_for(tokenizer, processor, model.config, options.conv_mode)
        return cls(name, tokenizer, model, processor, context_len, inputs)
