"""Cases of families around LLaVA's design: one encoder, a projector, a placeholder per patch; several read videos.

Every maker takes the vocabulary and the placeholder ids, for the checkpoints of tests/family_checkpoints_llava.py.
"""

from __future__ import annotations

import torch
import transformers as hf
from family_case import END, IMAGE, START, VIDEO, VIDEOS, VOCABULARY, Case
from family_models_tiles import TOWER, square_media, text


def clip(layers=3, **changes):
    sizes = {**TOWER, "num_hidden_layers": layers, "image_size": 16, "patch_size": 4}
    return hf.CLIPVisionConfig(**sizes | changes)


def siglip(**changes):
    return hf.SiglipVisionConfig(image_size=16, patch_size=4, vision_use_head=False, **TOWER | changes)


def vipllava(vocabulary=VOCABULARY, image=IMAGE):
    config = hf.VipLlavaConfig(
        vision_config=clip(),
        text_config=text("LlamaConfig", vocabulary),
        image_token_index=image,
        vision_feature_layer=[-2, -3],
    )
    return hf.VipLlavaForConditionalGeneration(config)


def llava_next_video(vocabulary=VOCABULARY, image=IMAGE, video=VIDEO):
    config = hf.LlavaNextVideoConfig(
        vision_config=clip(),
        text_config=text("LlamaConfig", vocabulary),
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=[[16, 32], [32, 16]],
    )
    return hf.LlavaNextVideoForConditionalGeneration(config)


def llava_next_video_media(model, letter, generator):
    """Images as LLaVA-NeXT's; three frames of a video, each pooled to 2×2 tokens."""
    if letter == "v":
        return 3 * 4, {"pixel_values_videos": torch.randn(1, 3, 3, 16, 16, generator=generator)}
    height, width = (16, 24) if letter == "i" else (32, 16)
    pixels = torch.randn(1, 3, 3, 16, 16, generator=generator)
    rows, columns = height // 4, width // 4
    return 16 + rows * (columns + 1), {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}


def video_llava(vocabulary=VOCABULARY, image=IMAGE, video=VIDEO):
    config = hf.VideoLlavaConfig(
        vision_config=clip(),
        text_config=text("LlamaConfig", vocabulary),
        image_token_index=image,
        video_token_index=video,
        image_seq_length=16,
    )
    return hf.VideoLlavaForConditionalGeneration(config)


def video_llava_media(model, letter, generator):
    """Two frames of a video keep their class tokens; two videos in one batch have as many."""
    if letter == "v":
        return 2 * 17, {"pixel_values_videos": torch.randn(1, 2, 3, 16, 16, generator=generator)}
    images = 1 if letter == "i" else 2
    return 16 * images, {"pixel_values_images": torch.randn(images, 3, 16, 16, generator=generator)}


def video_llama3(vocabulary=VOCABULARY, image=IMAGE, video=VIDEO):
    config = hf.VideoLlama3Config(
        text_config=text("Qwen2Config", vocabulary),
        vision_config=hf.VideoLlama3VisionConfig(patch_size=4, **TOWER),
        image_token_id=image,
        video_token_id=video,
    )
    return hf.VideoLlama3ForConditionalGeneration(config)


def video_llama3_media(model, letter, generator):
    """An image of 4×3 or 2×7 tokens, or three frames of 2×3."""
    grid = {"i": (1, 8, 6), "j": (1, 4, 14), "v": (3, 4, 6)}[letter]
    pixels = torch.randn(grid[0] * grid[1] * grid[2], 3 * 4 * 4, generator=generator)
    kind, names = ("video", "pixel_values_videos") if letter == "v" else ("image", "pixel_values")
    more = {f"{kind}_grid_thw": torch.tensor([grid]), f"{kind}_merge_sizes": torch.tensor([2])}
    return len(pixels) // 4, {names: pixels, **more}


def janus(vocabulary=VOCABULARY, image=IMAGE):
    vision = {**TOWER, "image_size": 16, "patch_size": 4, "projection_dim": 48, "num_image_tokens": 16}
    vision.pop("intermediate_size")
    codebook = {"embed_dim": 4, "num_embeddings": 16, "latent_channels": 32, "base_channels": 32, "num_res_blocks": 1}
    codebook |= {"channel_multiplier": [1, 1], "projection_dim": 48, "image_token_embed_dim": 48}
    config = hf.JanusConfig(
        text_config=text("LlamaConfig", vocabulary),
        vision_config=hf.JanusVisionConfig(mlp_ratio=2, **vision),
        vq_config=hf.JanusVQVAEConfig(**codebook),
        image_token_id=image,
        tie_word_embeddings=False,
    )
    return hf.JanusForConditionalGeneration(config)


def deepseek_vl(vocabulary=VOCABULARY, image=IMAGE):
    config = hf.DeepseekVLConfig(
        text_config=text("LlamaConfig", vocabulary),
        vision_config=siglip(),
        image_token_id=image,
        tie_word_embeddings=False,
    )
    return hf.DeepseekVLForConditionalGeneration(config)


def deepseek_vl_hybrid(vocabulary=VOCABULARY, image=IMAGE):
    sam = {"image_size": 32, "patch_size": 4, "output_channels": 8, "window_size": 7, "global_attn_indexes": [1]}
    sam |= {"hidden_size": 32, "mlp_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.DeepseekVLHybridConfig(
        text_config=text("LlamaConfig", vocabulary),
        vision_config=siglip(),
        high_res_vision_config=hf.SamVisionConfig(**sam),
        image_token_id=image,
        tie_word_embeddings=False,
    )
    return hf.DeepseekVLHybridForConditionalGeneration(config)


def hybrid_media(model, letter, generator):
    tokens, inputs = square_media(16, 16)(model, letter, generator)
    images = len(inputs["pixel_values"])
    return tokens, inputs | {"high_res_pixel_values": torch.randn(images, 3, 32, 32, generator=generator)}


CASES = {
    "vipllava": Case(vipllava, square_media(16, 16)),
    "llava_next_video": Case(llava_next_video, llava_next_video_media, VIDEOS),
    "video_llava": Case(video_llava, video_llava_media, VIDEOS),
    "video_llama3": Case(video_llama3, video_llama3_media, (*VIDEOS[:3], "vtvtit", "ttvttjttt")),
    "janus": Case(janus, square_media(16, 16), frame=(START, END)),
    "deepseek_vl": Case(deepseek_vl, square_media(16, 16)),
    "deepseek_vl_hybrid": Case(deepseek_vl_hybrid, hybrid_media),
}
