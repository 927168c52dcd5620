"""The `Case` of every family, by name: what the family tests and the matrix run on. A new family is one more.

The first families are here, the others in tests/family_models_*.py with the checkpoints that they load from.
"""

from __future__ import annotations

from functools import lru_cache

import family_models_layers
import family_models_llava
import family_models_tiles
import torch
import transformers as hf
from family_case import END, IMAGE, START, VIDEO, VIDEOS, Batch, Case, fields

from llava.model.language_model.configuration_llava import LlavaConfig
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM


def llama():
    return hf.LlamaConfig(**fields())


def clip():
    return hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
    )


def llava():
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=clip(), text_config=llama(), image_token_index=IMAGE)
    )


def llava_media(model, letter, generator):
    images = 1 + (letter == "j")
    return 16 * images, {"pixel_values": torch.randn(images, 3, 16, 16, generator=generator)}


def llava_original(image_size=16, **settings):
    """LLaVA's own layout; MobileVLM-V2 is the same with another projector."""
    vision = hf.CLIPVisionConfig(**{**clip().to_dict(), "image_size": image_size})
    settings = {"mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "clip", **settings}
    return LlavaLlamaForCausalLM(LlavaConfig(**fields(), **settings), vision)


def markers_media(model, letter, generator):
    images, side = 1 + (letter == "j"), model.get_vision_tower().config.image_size
    return model.visual_tokens_per_image * images, {"images": torch.randn(images, 3, side, side, generator=generator)}


def bare_media(model, letter, generator):
    count = 7 if letter == "i" else 16
    return count, {"features": torch.randn(count, 48, generator=generator)}


def llava_next(text):
    pinpoints = [[16, 32], [32, 16]]
    config = hf.LlavaNextConfig(
        vision_config=clip(), text_config=text, image_token_index=IMAGE, image_grid_pinpoints=pinpoints
    )
    return hf.LlavaNextForConditionalGeneration(config)


def llava_next_media(model, letter, generator):
    """Thumbnail and two tiles side by side or one above the other, unpadded, a newline after each row."""
    height, width = (16, 24) if letter == "i" else (32, 16)
    pixels = torch.randn(1, 3, 3, 16, 16, generator=generator)
    rows, columns = height // 4, width // 4
    return 16 + rows * (columns + 1), {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}


def llava_onevision():
    vision = hf.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    config = hf.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**fields()),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=[[16, 32], [32, 16]],
        tie_word_embeddings=False,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


def llava_onevision_media(model, letter, generator):
    """Images as LLaVA-NeXT's; three frames of a video, each pooled to 2×2 tokens, and one newline after them."""
    if letter == "v":
        return 3 * 4 + 1, {"pixel_values_videos": torch.randn(1, 3, 3, 16, 16, generator=generator)}
    return llava_next_media(model, letter, generator)


def internvl(text):
    vision = hf.InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=2,
    )
    return hf.InternVLForConditionalGeneration(
        hf.InternVLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, tie_word_embeddings=False)
    )


def internvl_media(model, letter, generator):
    tiles = 1 if letter == "i" else 3
    return 16 * tiles, {"pixel_values": torch.randn(tiles, 3, 16, 16, generator=generator)}


QWEN = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
PATCHES = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def qwen2_vl():
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2, **PATCHES}
    return hf.Qwen2VLForConditionalGeneration(
        hf.Qwen2VLConfig(text_config=fields(rope_parameters=ROPE), vision_config=vision, **QWEN)
    )


def qwen2_5_vl():
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48, "num_heads": 2, **PATCHES}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 4}
    return hf.Qwen2_5_VLForConditionalGeneration(
        hf.Qwen2_5_VLConfig(text_config=fields(rope_parameters=ROPE), vision_config=vision, **QWEN)
    )


def qwen_media(model, letter, generator):
    grid = {"i": (1, 8, 6), "j": (1, 4, 14), "v": (3, 4, 6)}[letter]
    patches = grid[0] * grid[1] * grid[2]
    pixels = torch.randn(patches, 3 * 2 * 4 * 4, generator=generator)
    names = ("pixel_values_videos", "video_grid_thw") if letter == "v" else ("pixel_values", "image_grid_thw")
    return patches // 4, dict(zip(names, (pixels, torch.tensor([grid])), strict=True))


def qwen3_media(model, letter, generator):
    """As Qwen2-VL's; a time stamp is text between the frames of a video."""
    count, inputs = qwen_media(model, letter, generator)
    frame = [VIDEO] * (count // 3)
    return [*frame, END, 7, START, *frame, END, 8, START, *frame] if letter == "v" else count, inputs


def hybrid(kind: str) -> dict:
    """Layers of a hybrid decoder: two of three read into a state."""
    return {"layer_types": [kind, "full_attention"] + [kind, kind, "full_attention"] + ["full_attention"]}


def qwen3_5(moe=False):
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48, "num_heads": 2, **PATCHES}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 12}
    heads |= {"linear_value_head_dim": 8, "head_dim": 12, **hybrid("linear_attention")}
    rope = {**ROPE, "mrope_section": [1, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.5}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    experts |= {"shared_expert_intermediate_size": 24}
    text = fields(rope_parameters=rope, **heads, **(experts if moe else {}))
    config = (hf.Qwen3_5MoeConfig if moe else hf.Qwen3_5Config)(
        text_config=text, vision_config=vision | {"num_position_embeddings": 16}, **QWEN
    )
    return (hf.Qwen3_5MoeForConditionalGeneration if moe else hf.Qwen3_5ForConditionalGeneration)(config)


def lfm2_vl():
    vision = hf.Siglip2VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, patch_size=4, num_patches=16
    )
    text = hf.Lfm2Config(**fields(**hybrid("conv")), block_auto_adjust_ff_dim=False, tie_word_embeddings=False)
    config = hf.Lfm2VlConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, downsample_factor=2, projector_hidden_size=48
    )
    return hf.Lfm2VlForConditionalGeneration(config)


def lfm2_media(model, letter, generator):
    """Patches of one image, padded to those of the largest; four patches make a token."""
    height, width = (4, 8) if letter == "i" else (6, 8)
    patches = torch.zeros(1, 48, 48)
    patches[:, : height * width] = torch.randn(1, height * width, 48, generator=generator)
    there = (torch.arange(48) < height * width).long()[None]
    inputs = {"pixel_values": patches, "spatial_shapes": torch.tensor([[height, width]]), "pixel_attention_mask": there}
    return height * width // 4, inputs


CASES = {
    "llava original": Case(llava_original, markers_media, layout="markers"),
    "mobilevlm": Case(
        lambda: llava_original(48, mm_projector_type="ldpnetv2"),
        markers_media,
        ("ttitt", "titttit", "ttttt", "itt"),
        layout="markers",
    ),
    "llava": Case(llava, llava_media),
    "llava_next": Case(lambda: llava_next(llama()), llava_next_media),
    "llava_next mistral": Case(
        lambda: llava_next(hf.MistralConfig(**fields(sliding_window=9))), llava_next_media, plain=False
    ),
    "llava_onevision": Case(llava_onevision, llava_onevision_media, VIDEOS),
    "internvl qwen2": Case(lambda: internvl(hf.Qwen2Config(**fields())), internvl_media, frame=(START, END)),
    "internvl qwen3": Case(lambda: internvl(hf.Qwen3Config(**fields(head_dim=12))), internvl_media, plain=False),
    "internvl llama": Case(lambda: internvl(llama()), internvl_media),
    "qwen2_vl": Case(qwen2_vl, qwen_media, VIDEOS, frame=(START, END)),
    "qwen2_5_vl": Case(qwen2_5_vl, qwen_media, VIDEOS, frame=(START, END)),
    "qwen3_5": Case(qwen3_5, qwen3_media, VIDEOS, frame=(START, END), plain=False),
    "lfm2_vl": Case(lfm2_vl, lfm2_media, plain=False),
    "bare llama": Case(lambda: hf.LlamaForCausalLM(llama()), bare_media, layout="bare"),
    "bare qwen3": Case(
        lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**fields(head_dim=12))), bare_media, plain=False, layout="bare"
    ),
    **family_models_layers.CASES,
    **family_models_llava.CASES,
    **family_models_tiles.CASES,
}


@lru_cache(maxsize=64)
def batch_of(name: str, *words: str) -> Batch:
    """The words, or the case's own mixed batch: one image, several, text only, no text before the image, a video."""
    return Batch(CASES[name], *(words or CASES[name].prompts))
