"""Load weights into models: every weight comes from the files, none is missing, none is left over."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from llava.model import checkpoint
from llava.model.silence import silence

_PROBLEMS = {
    "missing_keys": "weights are missing",
    "unexpected_keys": "weights are unexpected",
    "mismatched_keys": "weights have the wrong shape",
}
_FULL_PRECISION = [r".*vision_tower", r".*mm_projector", r".*multi_modal_projector", r"(.*\.)?visual", "lm_head"]
"""Modules that 8 and 4 bits leave as they are (regular expressions from a name's start on)."""


def build_model(
    kind: type, weights: Mapping[str, torch.Tensor], folder: Path, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> PreTrainedModel:
    """Build a model of class `kind` with `weights`, in eval mode, with the generation config of `folder`.

    `options` go to `from_pretrained`. Raises `ValueError` naming weights that are missing, unexpected or mis-shaped, in
    transformers' names of today, and `RuntimeError` for anything else that transformers reports.
    """
    with silence():
        model, report = kind.from_pretrained(None, state_dict=weights, output_loading_info=True, **options)
    for key, what in _PROBLEMS.items():
        names = [f"{n[0]} {list(n[1])} instead of {list(n[2])}" if isinstance(n, tuple) else n for n in report.pop(key)]
        checkpoint.raise_if_any(what, folder, names)
    failed = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if failed:
        raise RuntimeError(f"transformers did not load every weight as it is in the files: {failed}")
    # weights that needed no conversion are still the mapped file: they would change, or crash, with it
    mapped = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    for parameter in model.parameters():
        if parameter.untyped_storage().data_ptr() in mapped:
            parameter.data = parameter.data.clone()
    set_generation_config(model, folder, tokenizer)
    return model.eval()


def set_generation_config(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Take a folder's generation_config.json where there is one, and the tokenizer's pad token."""
    if (folder / "generation_config.json").exists():
        with silence():  # LLaVA-1.5's file has sampling settings beside do_sample false, of which transformers warns
            model.generation_config = GenerationConfig.from_pretrained(folder)
        # there it is the context length, copied in by old transformers; generate would warn of it beside max_new_tokens
        model.generation_config.max_length = None
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def quantization_config(load_8bit: bool, load_4bit: bool) -> BitsAndBytesConfig | None:
    """Return what `from_pretrained` takes; `ValueError` for both at once and where bitsandbytes is missing."""
    if not (load_8bit or load_4bit):
        return None
    if load_8bit and load_4bit:
        raise ValueError("load_8bit and load_4bit were both given: choose one")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("load_8bit and load_4bit need bitsandbytes, which is not installed: pip install bitsandbytes")
    # on a CPU it would say at every layer of every forward that it computes in float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_FULL_PRECISION)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.float16,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=_FULL_PRECISION,
    )
