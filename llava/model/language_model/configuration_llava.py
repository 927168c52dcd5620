"""`LlavaConfig`: a Llama configuration with LLaVA's `mm_*` keys, read from the original on-disk layout."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CLIPVisionConfig, LlamaConfig

from llava.mm_utils import check_aspect_ratio

HIDROP = "llava_llama_exit_topk"
MODEL_TYPES = ("llava", "llava_llama", "mobilevlm", HIDROP)
"""`model_type` of LLaVA-1.5's checkpoints ("llava"), of later ones ("llava_llama"), of MobileVLM's and of HiDrop's."""


class LlavaConfig(LlamaConfig):
    """Llama's configuration and LLaVA's keys; defaults are what a missing key meant to LLaVA.

    Ours are `conv_mode`, the conversation template that the model was trained with (None: vicuna_v1), and
    `visual_schedule`, the pruning config that it was trained with, as a JSON object.
    """

    model_type = "llava_llama"

    mm_vision_tower: str | None = None
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    mm_projector_type: str = "linear"
    mm_hidden_size: int | None = None
    mm_use_im_start_end: bool = False
    mm_use_im_patch_token: bool = True
    mm_patch_merge_type: str = "flat"
    image_aspect_ratio: str | None = None
    image_grid_pinpoints: list | None = None
    tokenizer_model_max_length: int | None = None
    max_sequence_length: int | None = None
    visual_schedule: dict | None = None
    conv_mode: str | None = None


def read_json(path: Path) -> dict:
    """Read a JSON object; `ValueError` naming the file if it is missing or not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} has no {path.name}: expected a checkpoint folder with one") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}: expected a JSON object")
    return content


def is_original(raw: dict) -> bool:
    """Whether a config.json describes LLaVA's original layout (transformers' own has the decoder in `text_config`)."""
    return raw.get("model_type") in MODEL_TYPES and "text_config" not in raw


def read_config(folder: Path) -> LlavaConfig:
    """Read and check `config.json` of a checkpoint in LLaVA's original layout, which is MobileVLM's too.

    Raises `ValueError` for anything else: another `model_type`, Hugging Face's own llava layout, no vision tower, or
    a feature of later LLaVA versions.
    """
    path, raw = folder / "config.json", read_json(folder / "config.json")
    kind = raw.get("model_type")
    if "text_config" in raw:
        raise ValueError(
            f"{path} is in Hugging Face's layout (text_config): only LLaVA's original layout loads here; "
            f"use the original checkpoint, such as liuhaotian/llava-v1.5-7b"
        )
    if kind not in MODEL_TYPES:
        raise ValueError(f"{path} has model_type {kind!r}: expected one of {', '.join(MODEL_TYPES)} (LLaVA on Llama)")
    if not isinstance(raw.get("mm_vision_tower"), str):
        raise ValueError(f"{path} has mm_vision_tower {raw.get('mm_vision_tower')!r}: expected a hub name or a folder")
    if raw.get("vision_tower_type") not in (None, "clip"):
        raise ValueError(f"{path} has vision_tower_type {raw['vision_tower_type']!r}: only 'clip' is supported")
    if raw.get("s2"):
        raise ValueError(f"{path} asks for multi-scale features (s2), which are not supported")
    try:
        check_aspect_ratio(raw.get("image_aspect_ratio"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if isinstance(raw.get("image_grid_pinpoints"), str):  # as early files have them
        raw["image_grid_pinpoints"] = json.loads(raw["image_grid_pinpoints"].replace("(", "[").replace(")", "]"))
    _check_merge(raw, path)
    known = {key: value for key, value in raw.items() if key not in ("model_type", "auto_map", "quantization_config")}
    for key in ("mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature"):
        if known.get(key, 0) is None:
            del known[key]
    return LlavaConfig.from_dict(known)


def _check_merge(raw: dict, path: Path) -> None:
    """Raise `ValueError` for AnyRes settings that the model cannot compute with."""
    if raw.get("mm_patch_merge_type", "flat") not in ("flat", "spatial_unpad"):
        kind = raw["mm_patch_merge_type"]
        raise ValueError(f"{path} has mm_patch_merge_type {kind!r}: expected 'flat' or 'spatial_unpad'")
    pinpoints = raw.get("image_grid_pinpoints")
    pairs = isinstance(pinpoints, list) and all(isinstance(one, list) and len(one) == 2 for one in pinpoints)
    if raw.get("image_aspect_ratio") == "anyres" and not (pairs and pinpoints):
        raise ValueError(f"{path} has image_grid_pinpoints {pinpoints!r}: 'anyres' needs a list of [width, height]")


def read_vision_config(folder: Path, config: LlavaConfig) -> CLIPVisionConfig:
    """Read the tower's configuration from a CLIP folder (the whole CLIP or its vision part alone).

    Raises `ValueError` for another kind of model, and for a width that `config.mm_hidden_size` contradicts.
    """
    path, raw = folder / "config.json", read_json(folder / "config.json")
    kind = raw.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise ValueError(f"{path} has model_type {kind!r}: the vision tower must be a CLIP (clip or clip_vision_model)")
    part = raw.get("vision_config", {}) if kind == "clip" else raw
    vision = CLIPVisionConfig.from_dict({key: value for key, value in part.items() if key != "model_type"})
    if config.mm_hidden_size not in (None, vision.hidden_size):
        raise ValueError(
            f"mm_hidden_size is {config.mm_hidden_size}, but the vision tower in {folder} is {vision.hidden_size} wide"
        )
    return vision
