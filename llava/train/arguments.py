"""Options of training: LLaVA's names, beside all of transformers' `TrainingArguments`.

Defaults are LLaVA-1.5's recipe where LLaVA's own are of an earlier model (`mm_projector_type` linear,
`mm_vision_select_layer` -1, `mm_use_im_patch_token` True, `model_max_length` 512, `version` v0).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import HfArgumentParser, TrainingArguments

from llava.cli import Parser, UserError


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """The model, and which of its parts are trained."""

    _argument_group_name = "model"

    model_name_or_path: str = field(metadata={"help": "a Llama such as Vicuna, a LLaVA, or any model that loads here"})
    version: str | None = _option(
        None,
        "conversation template of LLaVA's layout: plain (captions), v1, mpt … (default: the checkpoint's, else v1)",
    )
    vision_tower: str | None = _option(None, "CLIP to put before a Llama: a folder or hub name")
    mm_vision_select_layer: int = _option(-2, "layer of the tower whose states are projected")
    mm_vision_select_feature: str = _option("patch", "patch, or cls_patch with the class token")
    mm_projector_type: str = _option("mlp2x_gelu", "linear, mlp2x_gelu, …")
    mm_use_im_start_end: bool = _option(False, "put image start and end tokens around each image")
    mm_use_im_patch_token: bool = _option(False, "add an image patch token to the vocabulary")
    mm_patch_merge_type: str = _option("flat", "flat; spatial_unpad is LLaVA-1.6's")
    pretrain_mm_mlp_adapter: str | None = _option(None, "mm_projector.bin that the projector starts from")
    tune_mm_mlp_adapter: bool = _option(False, "train the projector alone (LLaVA's first stage)")
    freeze_mm_mlp_adapter: bool = _option(False, "leave the projector as it is")
    freeze_backbone: bool = _option(False, "leave the language model as it is")
    lora_enable: bool | None = _option(
        None, "train a LoRA on the decoder's linear layers (default: for models with a chat template; not for LLaVA's)"
    )
    lora_r: int = _option(64, "rank")
    lora_alpha: int = _option(16, "scale × rank")
    lora_dropout: float = _option(0.05, "dropout before the LoRA")
    lora_bias: str = _option("none", "none, all or lora_only")
    bits: int = _option(16, "4 or 8: the frozen model is quantized (QLoRA; bitsandbytes)")
    pruning_config: str | None = _option(
        None,
        "method to train with: JSON, a .json file, or none (default: what the checkpoint was trained with)",
    )
    pruned_steps: float = _option(1.0, "share of the steps that run pruned, drawn step by step; the others run dense")
    packed: bool = _option(True, "run the decoder on one stream without padding")
    cache_dir: str | None = _option(None, "where models of the hub are kept")


@dataclass
class DataArguments:
    """The data."""

    _argument_group_name = "data"

    data_path: str = field(metadata={"help": "JSON list (or lines) of conversations in LLaVA's format"})
    image_folder: str | None = _option(None, "folder of the images that the data names")
    image_aspect_ratio: str = _option("square", "square (resize, centre crop) or pad, for LLaVA's layout")
    model_max_length: int = _option(2048, "tokens of a sample, visual ones included")
    cut_long: bool = _option(False, "cut longer samples, as LLaVA does silently; else they are an error")
    group_by_modality_length: bool = _option(False, "batches of one modality and of similar lengths")
    mm_projector_lr: float | None = _option(None, "learning rate of the projector, where it differs")
    warmup_ratio: float | None = _option(None, "share of the steps in which the learning rate rises (0.03)")
    lazy_preprocess: bool = _option(True, "accepted for LLaVA's scripts: samples are always encoded one by one")
    evaluation_strategy: str = _option("no", "accepted for LLaVA's scripts")
    mpt_attn_impl: str | None = _option(None, "accepted for LLaVA's scripts")


_DEFAULTS = {
    "remove_unused_columns": False,
    "logging_steps": 1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "save_strategy": "steps",
    "use_cpu": not torch.cuda.is_available() and not torch.backends.mps.is_available(),
}


class _OneLine(HfArgumentParser):
    """A parser whose errors are one line."""

    error = Parser.error


def parse_arguments(argv: Sequence[str] | None) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Parse a command line; raises `UserError` for options that exclude each other."""
    parser = _OneLine(
        (ModelArguments, DataArguments, TrainingArguments),
        prog="python -m llava.train.train",
        description="Fine-tune a model on images and text (docs/training.md); LLaVA's options, and all of Trainer's.",
        allow_abbrev=False,
    )
    parser.set_defaults(**_DEFAULTS)
    made = parser.parse_args_into_dataclasses(argv, look_for_args_file=False, return_remaining_strings=True)
    model, data, training, unknown = made
    if unknown:
        near = difflib.get_close_matches(unknown[0], parser._option_string_actions, n=1)
        parser.error(f"unknown option {unknown[0]}" + (f" (did you mean {near[0]}?)" if near else ""))
    training.warmup_steps = training.warmup_steps if data.warmup_ratio is None else data.warmup_ratio
    if model.bits not in (4, 8, 16):
        raise UserError(f"--bits {model.bits}: expected 4, 8 or 16")
    if not 0 <= model.pruned_steps <= 1:
        raise UserError(f"--pruned_steps {model.pruned_steps}: expected a share from 0 to 1")
    if model.pruning_config in (None, "none") and model.pruned_steps != 1:
        raise UserError("--pruned_steps is a share of steps with a method: give --pruning_config")
    if model.tune_mm_mlp_adapter and (model.lora_enable or model.freeze_mm_mlp_adapter):
        raise UserError("--tune_mm_mlp_adapter trains the projector alone: leave LoRA and freeze_mm_mlp_adapter out")
    if model.bits != 16 and not (model.lora_enable or model.tune_mm_mlp_adapter):
        raise UserError(f"--bits {model.bits} freezes the model: give --lora_enable True or --tune_mm_mlp_adapter True")
    training.remove_unused_columns = False
    return model, data, training
