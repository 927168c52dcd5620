"""InternVL2.5 and InternVL3 as published (`model_type` internvl_chat), converted in memory, without remote code.

The model becomes transformers' `InternVLForConditionalGeneration`: InternLM2 is a Llama with grouped heads and other
names (llava.model.internvl.weights), so that everything that reads a Llama reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from llava.model import checkpoint
from llava.model.internvl.processor import TURN_END, InternVLImageProcessor, load_processor
from llava.model.internvl.weights import HEAD, INTERNLM2_HEAD, convert, original_layout
from llava.model.language_model.configuration_llava import read_json
from llava.model.loading import build_model
from llava.model.parts import Parts, find_parts

_DECODERS = {"InternLM2ForCausalLM": LlamaConfig, "LlamaForCausalLM": LlamaConfig, "Qwen2ForCausalLM": Qwen2Config}
_TEXT_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TEXT_KEYS = (
    *_TEXT_SIZES,
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_VISION_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size")
_VISION_DEFAULTS = {  # what the absence of a key means in the published code
    "patch_size": 14,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "norm_type": "rms_norm",
    "qkv_bias": False,
    "qk_normalization": True,
}
_RENAMED = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm"}


def load_internvl_original(
    parts: Parts | Path, **options: Any
) -> tuple[InternVLForConditionalGeneration, InternVLImageProcessor]:
    """Load a model in the original layout, in eval mode, and its processor (tokenizer, tiles, chat template).

    `parts`: the checkpoint's parts or its folder; `options` go to `from_pretrained`. An answer ends at `<|im_end|>`,
    the tokenizer's eos or a token that `generation_config.json` names.

    Beside the model, the host holds copies of InternLM2's queries, keys and values while it loads, about a tenth of the
    weights; the rest is read from the mapped files. Raises `ValueError` for a layout that is not supported before any
    weight is read, and naming weights, as the files spell them, that are missing, unexpected or mis-shaped.
    """
    parts = parts if isinstance(parts, Parts) else find_parts(str(parts), None, {})
    folder = parts.config.folder
    raw = read_json(folder / "config.json")
    config = read_config(folder, raw)
    processor = load_processor(folder, raw)
    config.image_token_id = processor.image_token_id

    weights = parts.read_weights()
    internlm2 = raw["llm_config"]["architectures"][0] == "InternLM2ForCausalLM"
    head = INTERNLM2_HEAD if internlm2 else HEAD
    tied = bool(raw["llm_config"].get("tie_word_embeddings", False)) and head not in weights
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    with torch.device("meta"):
        expected = InternVLForConditionalGeneration(config).state_dict()
    if tied:
        del expected["lm_head.weight"]
    checkpoint.check_weights(original_layout(expected, internlm2), weights, folder)
    converted = convert(weights, expected, config, internlm2)
    model = build_model(
        InternVLForConditionalGeneration, converted, folder, processor.tokenizer, config=config, **options
    )
    _end_at_turns(model.generation_config, processor.tokenizer)
    return model, processor


def read_config(folder: Path, raw: dict) -> InternVLConfig:
    """Turn the original `config.json`, read as `raw`, into transformers' configuration.

    The image token and whether the head is tied are left to the tokenizer and the weights. Raises `ValueError` for
    what transformers' model cannot compute in the same way, and for an unknown decoder or conversation.
    """
    path = folder / "config.json"
    text, vision = raw.get("llm_config"), raw.get("vision_config")
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise ValueError(f"{path} has no llm_config or vision_config: expected InternVL's original layout")
    decoder = (text.get("architectures") or [None])[0]
    if decoder not in _DECODERS:
        raise ValueError(f"{path} has the decoder {decoder!r} (llm_config): expected one of {', '.join(_DECODERS)}")
    for name, part, sizes in (("llm_config", text, _TEXT_SIZES), ("vision_config", vision, _VISION_SIZES)):
        if missing := [key for key in sizes if not isinstance(part.get(key), int)]:
            raise ValueError(f"{path} has no {', '.join(missing)} in {name}: expected whole numbers")
    vision = _VISION_DEFAULTS | vision
    side = vision["image_size"]
    required = {
        "template": (raw.get("template"), "internvl2_5"),
        "ps_version": (raw.get("ps_version", "v1"), "v2"),
        "pad2square": (raw.get("pad2square", False), False),
        "use_backbone_lora": (raw.get("use_backbone_lora", 0), 0),
        "use_llm_lora": (raw.get("use_llm_lora", 0), 0),
        "force_image_size": (raw.get("force_image_size") or side, side),
    }
    if vision["qk_normalization"]:
        required["vision_config's layer_norm_eps"] = (vision["layer_norm_eps"], 1e-6)
    for key, (given, supported) in required.items():
        if given != supported:
            raise ValueError(f"{path} has {key} {given!r}: only {supported!r} is supported")
    if vision["norm_type"] not in ("layer_norm", "rms_norm"):
        raise ValueError(f"{path} has norm_type {vision['norm_type']!r}: expected 'layer_norm' or 'rms_norm'")
    ratio = raw.get("downsample_ratio", 0.5)
    return InternVLConfig(
        text_config=_text_config(text, decoder),
        vision_config=InternVLVisionConfig(
            **{_RENAMED.get(key, key): vision[key] for key in (*_VISION_SIZES, *_VISION_DEFAULTS)}
        ),
        downsample_ratio=ratio,
        image_seq_length=int((side // vision["patch_size"]) ** 2 * ratio**2),
        vision_feature_layer=raw.get("select_layer", -1),
    )


def _text_config(text: dict, decoder: str) -> LlamaConfig | Qwen2Config:
    """Return the decoder's configuration; InternLM2's rope, dynamic beyond the trained length, is transformers' own."""
    known = {key: text[key] for key in _TEXT_KEYS if text.get(key) is not None}
    if decoder == "InternLM2ForCausalLM":
        known["attention_bias"] = text.get("bias", True)
    scaling = {key: value for key, value in (text.get("rope_scaling") or {}).items() if key != "type"}
    kind = (text.get("rope_scaling") or {}).get("type", "default")
    rope = {"rope_type": kind, "rope_theta": float(text.get("rope_theta", 10000.0))} | scaling
    return _DECODERS[decoder](**known, rope_parameters=text.get("rope_parameters") or rope)


def _end_at_turns(generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the end of a turn, where the published `chat()` stops, to what else ends an answer."""
    named = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    ends = {*named, tokenizer.convert_tokens_to_ids(TURN_END), tokenizer.eos_token_id} - {None}
    generation.eos_token_id = sorted(ends)
