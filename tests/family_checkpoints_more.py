"""Checkpoints of the families in tests/family_models_llava.py and family_models_tiles.py, by their own processors.

Each writer leaves tokenizer and processor in the folder and returns the model; templates have the structure of the
published ones.
"""

from __future__ import annotations

from pathlib import Path

import family_models_llava as llava
import family_models_tiles as tiles
import torch
import transformers as hf
from family_tokenizers import CHAT_ML, ids_of, write_byte_tokenizer, write_llama_tokenizer

from llava.model.processors import images_alone, processor_class

IDEFICS_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize }}{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in m['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' }}"
    "{% for part in m['content'] %}{{ '[IMG]' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ '[/INST]' }}{% else %}{{ m['content'][0]['text'] + '</s>' }}{% endif %}{% endfor %}"
)
DEEPSEEK_TEMPLATE = (
    "{% for m in messages %}{{ '<|User|>: ' if m['role'] == 'user' else '<|Assistant|>: ' }}"
    "{% for part in m['content'] %}{{ '<image_placeholder>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{{ '\n\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|>:' }}{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for part in m['content'] if part['type'] != 'text' %}{{ '<' + part['type'] + '>\n' }}{% endfor %}"
    "{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def chat_ml(image: str) -> str:
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for part in m['content'] %}"
        f"{{{{ '{image}\n' if part['type'] == 'image' else part['text'] }}}}"
        "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def save(folder: Path, name: str, images: str | dict, template: str, **settings) -> None:
    """Save a processor of class `name` with an image processor, made by its class where settings are given."""
    kind = processor_class(name)
    processor = kind if "video_processor" not in kind.get_attributes() else images_alone(kind)
    more = {"video_processor": None} if name == "SmolVLMProcessor" else {}
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    processor(image_processor=images, tokenizer=tokenizer, chat_template=template, **settings, **more).save_pretrained(
        folder
    )


def idefics(folder: Path, kind: str) -> torch.nn.Module:
    special = ["<|endoftext|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    special += [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
    ends = {"pad_token": "<|endoftext|>", "eos_token": "<end_of_utterance>"}
    vocabulary = write_byte_tokenizer(folder, special, ends)
    make = {"do_resize": True, "do_image_splitting": True}
    if kind == "Idefics2":
        images = hf.Idefics2ImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 24}, do_image_splitting=False)
    else:
        sizes = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 24}}
        images = getattr(hf, f"{kind}ImageProcessorPil")(**sizes, **make)
    save(folder, f"{kind}Processor", images, IDEFICS_TEMPLATE, image_seq_len=6 if kind == "Idefics2" else 9)
    [image] = ids_of(folder, "<image>")
    return tiles.idefics2(vocabulary, image) if kind == "Idefics2" else tiles.idefics3(vocabulary, image, kind)


def mistral3(folder: Path) -> torch.nn.Module:
    special = ["<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "tokenizer_class": "PreTrainedTokenizerFast"}
    vocabulary = write_byte_tokenizer(folder, special, ends)
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size={"height": 4, "width": 4})
    save(folder, "PixtralProcessor", images, MISTRAL_TEMPLATE, patch_size=4, spatial_merge_size=2)
    return tiles.mistral3(vocabulary, *ids_of(folder, "[IMG]"))


def lighton_ocr(folder: Path) -> torch.nn.Module:
    names = dict(
        zip(("image_token", "image_break_token", "image_end_token"), ("<|image_pad|>", "<|b|>", "<|e|>"), strict=True)
    )
    vocabulary = write_byte_tokenizer(folder, [*CHAT_ML, *names.values()], {"extra_special_tokens": names, **names})
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size={"height": 8, "width": 8})
    save(folder, "LightOnOcrProcessor", images, chat_ml("<|image_pad|>"), patch_size=4, spatial_merge_size=2)
    return tiles.lighton_ocr(vocabulary, *ids_of(folder, "<|image_pad|>"))


def ovis2(folder: Path) -> torch.nn.Module:
    indicators = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    vocabulary = write_byte_tokenizer(folder, [*CHAT_ML, "<image>", "<IMG_ATOM>", *indicators], {})
    images = hf.Ovis2ImageProcessorPil(
        size={"height": 24, "width": 24}, crop_to_patches=True, max_patches=4, use_covering_area_grid=True
    )
    save(folder, "Ovis2Processor", images, chat_ml("<image>"), image_seq_length=9)
    return tiles.ovis2(vocabulary, *ids_of(folder, "<IMG_ATOM>"), indicators=ids_of(folder, *indicators))


def got_ocr2(folder: Path) -> torch.nn.Module:
    vocabulary = write_byte_tokenizer(folder, [*CHAT_ML, "<img>", "</img>", "<imgpad>"], {})
    images = hf.GotOcr2ImageProcessorPil(size={"height": 256, "width": 256})
    save(folder, "GotOcr2Processor", images, chat_ml("<img><imgpad></img>"))
    return tiles.got_ocr2(vocabulary, *ids_of(folder, "<imgpad>"), side=256)  # its processor knows 256 tokens only


def qianfan_ocr(folder: Path) -> torch.nn.Module:
    names = ("start_image_token", "end_image_token", "context_image_token")
    names = dict(zip(names, ("<img>", "</img>", "<IMG_CONTEXT>"), strict=True))
    vocabulary = write_byte_tokenizer(folder, [*CHAT_ML, *names.values()], {"extra_special_tokens": names, **names})
    images = hf.GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, crop_to_patches=True, max_patches=4)
    save(folder, "QianfanOCRProcessor", images, chat_ml("<image>"), image_seq_length=16)
    return tiles.qianfan_ocr(vocabulary, *ids_of(folder, "<IMG_CONTEXT>"))


def clip_images(kind: str = "CLIPImageProcessorPil", **changes):
    square = {"height": 16, "width": 16}
    return getattr(hf, kind)(size={"shortest_edge": 16}, crop_size=square, **changes)


PATCHES = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def vipllava(folder: Path) -> torch.nn.Module:
    vocabulary = write_llama_tokenizer(folder, "<image>", "<pad>")
    save(folder, "LlavaProcessor", clip_images(), LLAVA_TEMPLATE, **PATCHES)
    return llava.vipllava(vocabulary, *ids_of(folder, "<image>"))


def llava_next_video(folder: Path) -> torch.nn.Module:
    vocabulary = write_llama_tokenizer(folder, "<image>", "<video>", "<pad>")
    images = clip_images("LlavaNextImageProcessorPil", image_grid_pinpoints=[[16, 32], [32, 16]])
    save(folder, "LlavaNextVideoProcessor", images, LLAVA_TEMPLATE, **PATCHES)
    return llava.llava_next_video(vocabulary, *ids_of(folder, "<image>", "<video>"))


def video_llama3(folder: Path) -> torch.nn.Module:
    vocabulary = write_byte_tokenizer(folder, [*CHAT_ML, "<|image_pad|>", "<|video_pad|>"], {})
    images = hf.VideoLlama3ImageProcessorPil(
        size={"shortest_edge": 128, "longest_edge": 1024}, patch_size=4, merge_size=2
    )
    save(folder, "VideoLlama3Processor", images, chat_ml("<|image_pad|>"))
    return llava.video_llama3(vocabulary, *ids_of(folder, "<|image_pad|>", "<|video_pad|>"))


def deepseek(folder: Path, kind: str) -> torch.nn.Module:
    names = {"image_token": "<image_placeholder>"}
    if kind == "Janus":
        names |= {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    special = ["<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>", *names.values()]
    ends = {"pad_token": "<|end|>", "eos_token": "<|end|>", "extra_special_tokens": names, **names}
    ends["tokenizer_class"] = "PreTrainedTokenizerFast"
    vocabulary = write_byte_tokenizer(folder, special, ends)
    sizes = {"size": {"height": 16, "width": 16}, "min_size": 4}
    if kind == "DeepseekVLHybrid":
        sizes["high_res_size"] = {"height": 32, "width": 32}
    images = getattr(hf, f"{kind}ImageProcessorPil")(**sizes)
    save(folder, f"{kind}Processor", images, DEEPSEEK_TEMPLATE, num_image_tokens=16)
    make = {"Janus": llava.janus, "DeepseekVL": llava.deepseek_vl, "DeepseekVLHybrid": llava.deepseek_vl_hybrid}
    return make[kind](vocabulary, *ids_of(folder, "<image_placeholder>"))


FAMILIES = {
    "idefics2": lambda folder: idefics(folder, "Idefics2"),
    "idefics3": lambda folder: idefics(folder, "Idefics3"),
    "smolvlm": lambda folder: idefics(folder, "SmolVLM"),
    "mistral3": mistral3,
    "lighton_ocr": lighton_ocr,
    "ovis2": ovis2,
    "got_ocr2": got_ocr2,
    "qianfan_ocr": qianfan_ocr,
    "vipllava": vipllava,
    "llava_next_video": llava_next_video,
    "video_llama_3": video_llama3,
    "janus": lambda folder: deepseek(folder, "Janus"),
    "deepseek_vl": lambda folder: deepseek(folder, "DeepseekVL"),
    "deepseek_vl_hybrid": lambda folder: deepseek(folder, "DeepseekVLHybrid"),
}
