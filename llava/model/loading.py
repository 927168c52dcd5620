"""Weights into models: every weight from the files, none missing, none left over, nothing said on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from llava.model import checkpoint
from llava.model.layouts import TRANSFORMERS, read_transformers_config
from llava.model.parts import Parts
from llava.model.processors import load_processor, set_pixels
from llava.model.silence import silence

_PROBLEMS = {
    "missing_keys": "weights are missing",
    "unexpected_keys": "weights are unexpected",
    "mismatched_keys": "weights have the wrong shape",
}


def load_transformers(
    parts: Parts, options: Mapping[str, Any], pixels: Mapping[str, int]
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model in transformers' own layout and its processor; `options` go to `from_pretrained`.

    `pixels`: `min_pixels` and `max_pixels` of the processor (`set_pixels`).

    Raises `ValueError` naming weights that are missing, unexpected or mis-shaped, in transformers' names of today, and
    files that are missing or not readable.
    """
    folder = parts.config.folder
    config = read_transformers_config(folder)
    processor = load_processor(folder, config)
    set_pixels(processor, pixels.get("min_pixels"), pixels.get("max_pixels"))
    weights = parts.read_weights()
    checkpoint.check_floating(weights, folder)
    kind = getattr(transformers, TRANSFORMERS[config.model_type])
    model, report = from_state_dict(kind, weights, config=config, ignore_mismatched_sizes=True, **options)
    for key, what in _PROBLEMS.items():
        names = [f"{n[0]} {list(n[1])} instead of {list(n[2])}" if isinstance(n, tuple) else n for n in report.pop(key)]
        checkpoint.raise_if_any(what, folder, names)
    raise_if_reported(report)
    set_generation_config(model, folder, processor.tokenizer)
    return model, processor


def from_state_dict(kind: type, weights: Mapping[str, torch.Tensor], **options: Any) -> tuple[PreTrainedModel, dict]:
    """Build a model of class `kind` with `weights`; return it and transformers' report, which must be looked at."""
    with silence():
        model, report = kind.from_pretrained(None, state_dict=weights, output_loading_info=True, **options)
    # weights that needed no conversion are still the mapped file: they would change, or crash, with it
    mapped = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    for parameter in model.parameters():
        if parameter.untyped_storage().data_ptr() in mapped:
            parameter.data = parameter.data.clone()
    return model, report


def raise_if_reported(report: Mapping[str, Any]) -> None:
    """Raise `RuntimeError` if transformers reports a weight that is not as it is in the files."""
    failed = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if failed:
        raise RuntimeError(f"transformers did not load every weight as it is in the files: {failed}")


def set_generation_config(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Take a folder's generation_config.json where there is one, and the tokenizer's pad token."""
    if (folder / "generation_config.json").exists():
        with silence():  # LLaVA-1.5's file has sampling settings beside do_sample false, which transformers tells
            model.generation_config = GenerationConfig.from_pretrained(folder)
        # there it is the context length, copied in by old transformers; generate would warn of it beside max_new_tokens
        model.generation_config.max_length = None
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
