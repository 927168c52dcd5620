"""Processors of transformers' families: torchvision's image processors where it is installed, PIL's where it is not.

Without torchvision the processors of Qwen2-VL, InternVL and LLaVA-OneVision do not load at all, because transformers
reads videos with it; the classes here are the same processors for text and images alone.
"""

from __future__ import annotations

from pathlib import Path

from transformers import (
    AutoProcessor,
    InternVLProcessor,
    LlavaOnevisionProcessor,
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
)
from transformers.utils import is_torchvision_available

from llava.model.silence import silence


class Qwen2VLImagesAlone(Qwen2VLProcessor):
    """Qwen2-VL's processor without its video part."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **kwargs)


class Qwen2_5_VLImagesAlone(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its video part."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **kwargs)


class InternVLImagesAlone(InternVLProcessor):
    """InternVL's processor without its video part."""

    def __init__(self, image_processor=None, tokenizer=None, image_seq_length: int = 256, chat_template=None, **kwargs):
        super().__init__(image_processor, tokenizer, None, image_seq_length, chat_template=chat_template, **kwargs)


class LlavaOnevisionImagesAlone(LlavaOnevisionProcessor):
    """LLaVA-OneVision's processor without its video part; what is not named here would not be read from the files."""

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        num_image_tokens: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template=None,
        image_token: str = "<image>",
        video_token: str = "<video>",
        vision_aspect_ratio: str = "anyres_max_9",
        **kwargs,
    ):
        named = {"num_image_tokens": num_image_tokens, "vision_feature_select_strategy": vision_feature_select_strategy}
        named |= {"image_token": image_token, "video_token": video_token, "vision_aspect_ratio": vision_aspect_ratio}
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **named, **kwargs)


IMAGES_ALONE = {
    "qwen2_vl": Qwen2VLImagesAlone,
    "qwen2_5_vl": Qwen2_5_VLImagesAlone,
    "internvl": InternVLImagesAlone,
    "llava_onevision": LlavaOnevisionImagesAlone,
}

PIXEL_BOUNDED = ("qwen2_vl", "qwen2_5_vl")
"""Model types whose images keep their own resolution, within bounds that can be set."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def load_processor(folder: Path, config: PreTrainedConfig) -> ProcessorMixin:
    """Load a checkpoint's processor: left padding, a pad token, and a chat template.

    Raises `ValueError` if its files are missing or damaged, if it has no chat template or pad token, or if its tokens
    are not those of `config`.
    """
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise ValueError(f"{folder} has no tokenizer: expected one of {', '.join(TOKENIZER_FILES)}")
    loader = AutoProcessor if is_torchvision_available() else IMAGES_ALONE.get(config.model_type, AutoProcessor)
    try:
        with silence():
            processor = loader.from_pretrained(folder)
    except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder} has no processor that loads (tokenizer and image processor): {reason}") from error
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(f"{folder} has no preprocessor_config.json: images cannot be prepared")
    check_processor(processor, config, folder)
    return processor


def check_pixels(model_type: str, min_pixels: int | None, max_pixels: int | None) -> None:
    """Raise `ValueError` for bounds that a family does not have, or that exclude each other."""
    given = [f"{key}={value}" for key, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)) if value]
    if given and model_type not in PIXEL_BOUNDED:
        raise ValueError(
            f"{' and '.join(given)} given, but images of model_type {model_type!r} have a fixed size: leave them out "
            f"(they serve {', '.join(PIXEL_BOUNDED)})"
        )
    if min_pixels and max_pixels and min_pixels > max_pixels:
        raise ValueError(f"min_pixels={min_pixels} is larger than max_pixels={max_pixels}")


def set_pixels(processor: ProcessorMixin, min_pixels: int | None, max_pixels: int | None) -> None:
    """Set the smallest and largest image that the model sees, in pixels; None keeps the checkpoint's bound.

    Raises `ValueError` if an image could not have one visual token, or if the bounds exclude each other.
    """
    if min_pixels is None and max_pixels is None:
        return
    images = processor.image_processor
    side = images.patch_size * images.merge_size
    low, high = min_pixels or images.size["shortest_edge"], max_pixels or images.size["longest_edge"]
    if not side * side <= high or low > high:
        raise ValueError(
            f"images from {low} to {high} pixels (min_pixels, max_pixels): expected bounds in this order, the upper "
            f"one at least {side * side} (one visual token)"
        )
    images.size = {**dict(images.size), "shortest_edge": low, "longest_edge": high}


def check_processor(processor: ProcessorMixin, config: PreTrainedConfig, folder: Path) -> None:
    """Set left padding and a pad token; `ValueError` where a processor cannot serve a model (see `load_processor`)."""
    tokenizer = processor.tokenizer
    if processor.chat_template is None:
        processor.chat_template = tokenizer.chat_template
    if processor.chat_template is None:
        raise ValueError(
            f"{folder} has no chat template, which its prompts are made with: expected chat_template.jinja or "
            "chat_template.json beside the processor's files"
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        if tokenizer.pad_token_id is None:
            raise ValueError(f"the tokenizer in {folder} has neither a pad, unk nor eos token: batches need one")
    size = config.get_text_config().vocab_size
    if len(tokenizer) > size:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model {size} (vocab_size): "
            f"the files do not belong together"
        )
    if processor.image_token_id != config.image_token_id:
        raise ValueError(
            f"{folder}: the processor's image token {processor.image_token!r} has the id {processor.image_token_id}, "
            f"the model's is {config.image_token_id} (image_token_id): the files do not belong together"
        )
    if getattr(processor, "patch_size", 0) is None:
        raise ValueError(f"{folder}: processor_config.json has no patch_size: take a newer revision of the checkpoint")
    if config.model_type == "internvl":
        vision = config.vision_config
        tokens = int((vision.image_size[0] // vision.patch_size[0] * config.downsample_ratio) ** 2)
        if processor.image_seq_length != tokens:
            raise ValueError(
                f"{folder}: the processor gives each tile {processor.image_seq_length} tokens (image_seq_length of "
                f"processor_config.json; 256 without that file), the model {tokens}: the files do not belong together"
            )
