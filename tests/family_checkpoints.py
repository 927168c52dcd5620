"""Small random checkpoints of transformers' families on disk, laid out as published: weights, tokenizer, processor.

Chat templates have the structure of the published ones, in few lines; tokenizers are trained on a few sentences, with
the families' own special tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import family_checkpoints_more
import torch
import transformers as hf
from family_case import fields, peaked
from family_models import PATCHES, ROPE, clip, hybrid
from family_tokenizers import CHAT_ML, ids_of, write_byte_tokenizer, write_json, write_llama_tokenizer
from transformers.utils import logging

QWEN_TOKENS = [*CHAT_ML, "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
ONEVISION_TOKENS = [*CHAT_ML, "<image>", "<video>"]
INTERNVL_TOKENS = [*CHAT_ML, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]

LLAVA_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for part in m['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INTERNVL_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ONEVISION_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{% for part in m['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in m['content'] if part['type'] == 'video' %}{{ '<video>' }}{% endfor %}"
    "{% for part in m['content'] if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CLIP_IMAGES = {
    "image_processor_type": "CLIPImageProcessor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
    "resample": 3,
}


def text_fields(vocabulary: int, **changes) -> dict:
    return fields(vocab_size=vocabulary, max_position_embeddings=1024, **changes)


def llava(folder: Path) -> torch.nn.Module:
    vocabulary = write_llama_tokenizer(folder, "<image>", "<pad>")
    write_json(folder / "preprocessor_config.json", CLIP_IMAGES | square("crop_size") | {"size": {"shortest_edge": 16}})
    write_json(folder / "processor_config.json", {"processor_class": "LlavaProcessor", **clip_tokens()})
    write_json(folder / "chat_template.json", {"chat_template": LLAVA_TEMPLATE})
    [image] = ids_of(folder, "<image>")
    text = hf.LlamaConfig(**text_fields(vocabulary))
    config = hf.LlavaConfig(vision_config=clip(), text_config=text, image_token_index=image)
    return hf.LlavaForConditionalGeneration(config)


def llava_next(folder: Path) -> torch.nn.Module:
    vocabulary = write_llama_tokenizer(folder, "<image>", "<pad>")
    pinpoints = [[16, 32], [32, 16], [32, 32]]
    images = {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": pinpoints}
    images = CLIP_IMAGES | square("crop_size") | {"size": {"shortest_edge": 16}} | images
    write_json(folder / "preprocessor_config.json", images)
    write_json(folder / "processor_config.json", {"processor_class": "LlavaNextProcessor", **clip_tokens()})
    (folder / "chat_template.jinja").write_text(LLAVA_TEMPLATE)
    [image] = ids_of(folder, "<image>")
    text = hf.LlamaConfig(**text_fields(vocabulary))
    pins = {"image_grid_pinpoints": pinpoints, "image_token_index": image}
    return hf.LlavaNextForConditionalGeneration(hf.LlavaNextConfig(vision_config=clip(), text_config=text, **pins))


def clip_tokens() -> dict:
    strategy = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return {"patch_size": 4, "image_token": "<image>", **strategy}


def square(name: str, side: int = 16) -> dict:
    return {name: {"height": side, "width": side}}


def qwen(folder: Path, version: str) -> torch.nn.Module:
    vocabulary = write_byte_tokenizer(folder, QWEN_TOKENS, {"chat_template": QWEN_TEMPLATE})
    images = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 128, "max_pixels": 1024}
    images |= {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    images |= {name: CLIP_IMAGES[name] for name in ("image_mean", "image_std")}
    processor = f"Qwen{version.removesuffix('.5')}VLProcessor"
    write_json(folder / "preprocessor_config.json", images | {"processor_class": processor})
    write_json(folder / "chat_template.json", {"chat_template": QWEN_TEMPLATE})
    named = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    keys = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = dict(zip(keys, ids_of(folder, *named), strict=True))
    text = text_fields(vocabulary, rope_parameters=ROPE)
    if version[0] == "3":
        videos = images | {"video_processor_type": "Qwen3VLVideoProcessor"}
        videos = videos | {"size": {"shortest_edge": 128, "longest_edge": 4096}}
        write_json(folder / "video_preprocessor_config.json", videos)
        text |= {"head_dim": 12, "rope_parameters": {**ROPE, "mrope_interleaved": True}}
        vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48, "num_heads": 2}
        vision |= {"num_position_embeddings": 16, **PATCHES}
        if version == "3.5":
            rope = {**ROPE, "mrope_section": [1, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.5}
            text |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 12}
            text |= {"linear_value_head_dim": 8, "rope_parameters": rope, **hybrid("linear_attention")}
            config = hf.Qwen3_5Config(text_config=text, vision_config=vision, **tokens)
            return hf.Qwen3_5ForConditionalGeneration(config)
        vision |= {"deepstack_visual_indexes": [0, 1]}
        config = hf.Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
        return hf.Qwen3VLForConditionalGeneration(config)
    if version == "2":
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2, **PATCHES}
        config = hf.Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
        return hf.Qwen2VLForConditionalGeneration(config)
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 48, "num_heads": 2, **PATCHES}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 4}
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def internvl(folder: Path) -> torch.nn.Module:
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    settings = {"extra_special_tokens": dict(zip(names, INTERNVL_TOKENS[3:], strict=True))}
    settings |= dict(zip(names, INTERNVL_TOKENS[3:], strict=True))
    vocabulary = write_byte_tokenizer(folder, INTERNVL_TOKENS, settings)
    images = {"image_processor_type": "GotOcr2ImageProcessorFast", "crop_to_patches": False, "max_patches": 4}
    images |= {"min_patches": 1, "size": {"height": 16, "width": 16}, "resample": 3, "do_convert_rgb": True}
    images |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    write_json(folder / "preprocessor_config.json", images | {"processor_class": "InternVLProcessor"})
    write_json(folder / "processor_config.json", {"processor_class": "InternVLProcessor", "image_seq_length": 16})
    (folder / "chat_template.jinja").write_text(INTERNVL_TEMPLATE)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(image_size=16, patch_size=2, **sizes),
        text_config=hf.Qwen2Config(**text_fields(vocabulary)),
        image_token_id=ids_of(folder, "<IMG_CONTEXT>")[0],
        tie_word_embeddings=False,
    )
    return hf.InternVLForConditionalGeneration(config)


def llava_onevision(folder: Path) -> torch.nn.Module:
    vocabulary = write_byte_tokenizer(folder, ONEVISION_TOKENS, {})
    pinpoints = [[16, 32], [32, 16], [32, 32]]
    images = {"image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": pinpoints}
    images |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_pad": True, "resample": 3}
    write_json(folder / "preprocessor_config.json", CLIP_IMAGES | square("size") | images)
    tokens = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    tokens |= {"image_token": "<image>", "video_token": "<video>", "processor_class": "LlavaOnevisionProcessor"}
    write_json(folder / "processor_config.json", tokens)
    write_json(folder / "chat_template.json", {"chat_template": ONEVISION_TEMPLATE})
    image, video = ids_of(folder, "<image>", "<video>")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(image_size=16, patch_size=4, vision_use_head=False, **sizes),
        text_config=hf.Qwen2Config(**text_fields(vocabulary)),
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=pinpoints,
        tie_word_embeddings=False,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


FIRST: dict[str, Callable[[Path], torch.nn.Module]] = {
    "llava": llava,
    "llava_next": llava_next,
    "qwen2_vl": lambda folder: qwen(folder, "2"),
    "qwen2_5_vl": lambda folder: qwen(folder, "2_5"),
    "qwen3_vl": lambda folder: qwen(folder, "3"),
    "qwen3_5": lambda folder: qwen(folder, "3.5"),
    "internvl": internvl,
    "llava_onevision": llava_onevision,
}
"""Those on which every command is tried; the others go through loader, eval and chat."""
FAMILIES = FIRST | family_checkpoints_more.FAMILIES


def write_family(folder: Path, name: str, layers: int | None = None) -> Path:
    """Write a checkpoint of one family, its attention peaked enough that single tokens matter."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = peaked(FAMILIES[name](folder))
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    words = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)
    for token, word in enumerate(words):  # answers are readable: bytes of broken characters are not chosen
        if not word.isascii() or not word.isprintable() or not word:
            model.lm_head.weight[token] = 0
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    # what Qwen2-VL's own checkpoints hold: greedy decoding must not stumble over it
    sampling = {"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.0}
    write_json(folder / "generation_config.json", sampling | {"eos_token_id": [2], "pad_token_id": 0})
    return folder
