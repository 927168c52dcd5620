"""Families whose layers are more than plain causal attention: DeepStack, windows, blocks, caps, sinks, experts."""

from __future__ import annotations

import torch
import transformers as hf
from family_case import END, IMAGE, START, VIDEO, Case, fields

FRAME = (START, END)
VIDEOS = ("tttittt", "ttittjttt", "ttttt", "ttvttjttt", "vtvtit")
PATCHES = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
SIGLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"] * 2
THETA = {"rope_type": "default", "rope_theta": 10000.0}


def qwen3_vl(moe=False):
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48, "num_heads": 2, **PATCHES}
    vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
    rope = {**THETA, "mrope_section": [2, 2, 2], "mrope_interleaved": True}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1]}
    text = fields(rope_parameters=rope, head_dim=12, **(experts if moe else {}))
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    config = (hf.Qwen3VLMoeConfig if moe else hf.Qwen3VLConfig)(text_config=text, vision_config=vision, **ids)
    return (hf.Qwen3VLMoeForConditionalGeneration if moe else hf.Qwen3VLForConditionalGeneration)(config)


def grid_media(model, letter, generator):
    """Images of any size; a time stamp is text between the frames of a video."""
    grid = {"i": (1, 8, 6), "j": (1, 4, 14), "v": (3, 4, 6)}[letter]
    patches = grid[0] * grid[1] * grid[2]
    pixels = torch.randn(patches, 3 * 2 * 4 * 4, generator=generator)
    names = ("pixel_values_videos", "video_grid_thw") if letter == "v" else ("pixel_values", "image_grid_thw")
    frame = [VIDEO] * (patches // 12)
    tokens = [*frame, END, 7, START, *frame, END, 8, START, *frame] if letter == "v" else patches // 4
    return tokens, dict(zip(names, (pixels, torch.tensor([grid])), strict=True))


def glm4v(moe=False):
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 48, "num_heads": 2, "image_size": 16, **PATCHES}
    vision |= {"intermediate_size": 48}
    rope = {**THETA, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 1]}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 2}
    text = fields(rope_parameters=rope, **(experts if moe else {}))
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": START, "image_end_token_id": END}
    config = (hf.Glm4vMoeConfig if moe else hf.Glm4vConfig)(text_config=text, vision_config=vision, **ids)
    return (hf.Glm4vMoeForConditionalGeneration if moe else hf.Glm4vForConditionalGeneration)(config)


def gemma3():
    rope = {kind: {"rope_type": "default", "rope_theta": base} for kind, base in zip(MIXED, (1e4, 1e6), strict=False)}
    text = fields(head_dim=12, sliding_window=9, layer_types=MIXED, rope_parameters=rope, query_pre_attn_scalar=12)
    config = hf.Gemma3Config(
        text_config=text,
        vision_config={**SIGLIP, "image_size": 32},
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )
    return hf.Gemma3ForConditionalGeneration(config)


def crops_media(model, letter, generator):
    """One image, or two with their frames."""
    count = 1 + (letter == "j")
    tokens = [IMAGE] * 16 + [END, 7, START, *[IMAGE] * 16] * (count - 1)
    return tokens, {"pixel_values": torch.randn(count, 3, 32, 32, generator=generator)}


def paligemma(second=False):
    windows = {"sliding_window": 9, "layer_types": MIXED, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 12}
    windows |= {"final_logit_softcapping": 4.0, "attn_implementation": "eager"}
    text = (hf.Gemma2Config if second else hf.GemmaConfig)(**fields(head_dim=12, **(windows if second else {})))
    config = hf.PaliGemmaConfig(
        text_config=text, vision_config={**SIGLIP, "image_size": 16}, image_token_index=IMAGE, projection_dim=48
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def patches_media(model, letter, generator):
    """Sixteen tokens per image, one image after the other."""
    images = 1 + (letter == "j")
    return 16 * images, {"pixel_values": torch.randn(images, 3, 16, 16, generator=generator)}


def cohere2_vision():
    text = hf.Cohere2Config(**fields(sliding_window=9, layer_types=MIXED))
    config = hf.Cohere2VisionConfig(
        text_config=text,
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "image_size": 32},
        image_token_id=IMAGE,
        alignment_intermediate_size=64,
    )
    return hf.Cohere2VisionForConditionalGeneration(config)


def bare_media(model, letter, generator):
    count = 7 if letter == "i" else 16
    return count, {"features": torch.randn(count, 48, generator=generator)}


def gpt_oss():
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    config = hf.GptOssConfig(
        **fields(head_dim=12, sliding_window=9, layer_types=MIXED, rope_parameters=THETA, **experts),
        attn_implementation="eager",
    )
    return hf.GptOssForCausalLM(config)


CASES = {
    "qwen3_vl": Case(qwen3_vl, grid_media, VIDEOS, frame=FRAME, plain=False),
    "qwen3_vl_moe": Case(lambda: qwen3_vl(moe=True), grid_media, VIDEOS, frame=FRAME, plain=False),
    "glm4v": Case(glm4v, grid_media, frame=FRAME, plain=False),
    "glm4v_moe": Case(lambda: glm4v(moe=True), grid_media, frame=FRAME, plain=False),
    "gemma3": Case(
        gemma3, crops_media, frame=FRAME, plain=False, token_types=lambda ids: (ids == IMAGE).int(), rounding=3e-5
    ),
    "paligemma": Case(paligemma, patches_media, plain=False, token_types=torch.zeros_like),
    "paligemma2": Case(lambda: paligemma(second=True), patches_media, plain=False, token_types=torch.zeros_like),
    "cohere2_vision": Case(cohere2_vision, crops_media, frame=FRAME, plain=False),
    "bare gpt_oss": Case(gpt_oss, bare_media, plain=False, layout="bare"),
}
