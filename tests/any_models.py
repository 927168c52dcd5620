"""A tiny random model of any entry of transformers' image-text-to-text list, made by shrinking its default config.

Towers are not what is tested: features are drawn, and put where the prompt's placeholders are embedded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import transformers as hf
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as LISTED

IMAGE, VOCABULARY = 150, 160
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "depth": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "mlp_ratio": 2,
    "out_hidden_size": 32,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "linear_num_heads": 2,
    "linear_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "n_layers": 2,
    "text_hidden_size": 32,
    "base_channels": 32,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "moe_hidden_size": 32,
    "shared_experts_intermediate_size": 16,
    "hc_lowrank": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "ffn_dim": 40,
    "word_embed_proj_dim": 32,
    "encoder_hidden_size": 32,
    "d_model": 32,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "ffn_hidden_size": 40,
    "attention_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "num_query_tokens": 4,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "attn_hidden_size": 32,
    "projector_hidden_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PLACEHOLDERS = ("image_token_id", "image_token_index", "image_patch_id")


def tiny(model_type: str) -> nn.Module:
    """A random model in eval mode, attention peaked enough that single tokens matter."""
    kind = getattr(hf, LISTED[model_type])
    config = CONFIGS.get(model_type, lambda make: make())(kind.config_class)
    shrink(config)
    for name in PLACEHOLDERS:
        if hasattr(config, name):
            setattr(config, name, IMAGE)
    ADJUST.get(model_type, lambda config: None)(config)
    torch.manual_seed(0)
    with patch.object(hf.AutoModel, "from_config", without_timm(hf.AutoModel.from_config)):
        model = kind(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and "norm" not in name:
            nn.init.normal_(parameter, std=1.3 * parameter[0].numel() ** -0.5)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def without_timm(make: Callable) -> Callable:
    """Leave towers of timm out, a package that is not needed here."""
    return lambda config, **more: nn.Identity() if hasattr(config, "architecture") else make(config, **more)


def shrink(config: hf.PreTrainedConfig) -> None:
    """Make every width, depth and count in a config and in those inside it small."""
    for key, value in list(vars(config).items()):
        if isinstance(value, hf.PreTrainedConfig):
            shrink(value)
        elif key in SMALL and value not in (None, SMALL[key]) and not isinstance(value, list | tuple | dict):
            put(config, key, SMALL[key])
    kinds = vars(config).get("layer_types")
    if kinds and len(kinds) > config.num_hidden_layers:
        config.layer_types = (list(dict.fromkeys(kinds)) * 4)[: config.num_hidden_layers]
    rotary(config)


def put(config: hf.PreTrainedConfig, key: str, value: Any) -> None:
    """Set a field, as the number that its type asks for."""
    try:
        setattr(config, key, value)
    except Exception:  # the library's own validation error, of a private class
        setattr(config, key, float(value))


def rotary(config: hf.PreTrainedConfig) -> None:
    """Divide the rotary frequencies among the rows of M-RoPE as the small heads allow."""
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and "mrope_section" in rope:
        width = vars(config).get("head_dim") or config.hidden_size // config.num_attention_heads
        half = int(width * rope.get("partial_rotary_factor", 1.0)) // 2
        third = half // 3 or 1
        config.rope_parameters = rope | {
            "mrope_section": [third, third, half - 2 * third][: len(rope["mrope_section"])]
        }


def text(**fields: Any):
    """Set fields of the text config."""
    return lambda config: [setattr(config.get_text_config(), key, value) for key, value in fields.items()]


def sections(*counts: int):
    """Say how many rotary frequencies each row of positions turns, where the default config leaves it open."""

    def set_them(config: hf.PreTrainedConfig) -> None:
        inner = config.get_text_config()
        inner.rope_parameters = inner.rope_parameters | {"mrope_section": list(counts)}

    return set_them


def latent(config: hf.PreTrainedConfig) -> None:
    """Latent attention has as many key heads as query heads, and rotates its own part of them."""
    inner = config.get_text_config()
    inner.num_key_value_heads = 4
    inner.head_dim = inner.qk_rope_head_dim


def audio(config: hf.PreTrainedConfig) -> None:
    """The thinkers' audio tower, and the ids that frame images."""
    config.audio_config.d_model, config.audio_config.encoder_attention_heads = 32, 4
    config.vision_start_token_id = 145


def tower(config: hf.PreTrainedConfig) -> None:
    """A tower whose widths hang together otherwise."""
    config.vision_config.hidden_size, config.vision_config.num_attention_heads = 64, 1


FULL = {"rope_theta": 10000.0, "rope_type": "default"}
VISUAL_WORDS = {"<image>": IMAGE, "IMGIMGAZ": 151, "IMGIMGBZ": 152}
NOTE = {key: value for key, value in SMALL.items() if key in hf.Dots3NoteTextConfig.__dataclass_fields__}
INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 256, "indexer_budget": 64}
INDEXER |= {"indexer_compress_ratio": 4, "num_hidden_layers": 4}
CONFIGS: dict[str, Any] = {
    "chameleon": lambda make: make(vocabulary_map=VISUAL_WORDS),
    "emu3": lambda make: make(vocabulary_map={"<image>": IMAGE, "<|extra_200|>": 149, "<|visual token 000000|>": 151}),
    "dots3_note": lambda make: make(
        text_config=NOTE | {"num_key_value_heads": 4},
        vision_config={"adapter_out_dim": 32},
        audio_config={"adapter_out_dim": 32},
    ),
    "granite4_vision": lambda make: make(deepstack_layer_map=[(-1, 1), (0, 2)], downsample_rate="2/4"),
    "qwen4_exp": lambda make: make(text_config=INDEXER | {"layer_types": ["linear_attention", "full_attention"] * 2}),
}
ADJUST: dict[str, Any] = {
    "cohere_compass": text(rope_parameters={"full_attention": FULL, "sliding_attention": FULL}),
    "deepseek_ocr2": text(mlp_layer_types=["dense"] * 2 + ["sparse"] * 2, num_experts_per_tok=2),
    "dots3_note": text(num_key_value_heads=4),
    "ernie4_5_vl_moe": lambda config: (sections(1, 1, 2)(config), text(moe_k=2)(config)),
    "gemma3n": text(num_kv_shared_layers=2, activation_sparsity_pattern=[0.0] * 4),
    "glm5_next": latent,
    "glm_ocr": sections(1, 1, 2),
    "granite4_vision": tower,
    "hunyuan_vl": lambda config: (text(head_dim=8)(config), sections(1, 1, 1, 1)(config)),
    "kimi_k25": latent,
    "mistral_large4": latent,
    "nemotron_h_omni": text(n_groups=2),
    "paddleocr_vl": sections(1, 1, 2),
    "qwen2_5_omni_thinker": lambda config: (audio(config), sections(1, 1, 2)(config)),
    "qwen3_omni_moe_thinker": audio,
    "step3p7": text(sliding_window=64),
}
