"""Processors of transformers' families: torchvision's image processors where it is installed, PIL's where it is not."""

from __future__ import annotations

from pathlib import Path

import transformers
from transformers import AutoProcessor, PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from llava.model.pruning.families import FAMILIES
from llava.model.silence import silence
from llava.model.video_processors import load_video_processor

PIXEL_BOUNDED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Model types whose images keep their own resolution, within bounds that can be set."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def images_alone(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Return a processor class without its video part, which asks for torchvision, so that the class loads."""
    parts = [name for name in kind.get_attributes() if name != "video_processor"]
    body = {
        "get_attributes": classmethod(lambda cls: parts),
        "__reduce__": lambda self: (_restored, (kind, vars(self))),
    }
    return type(kind.__name__, (kind,), body)


def _restored(kind: type[ProcessorMixin], state: dict) -> ProcessorMixin:
    """Make a pickled processor again; worker processes get one."""
    processor = object.__new__(images_alone(kind))
    vars(processor).update(state)
    return processor


def _class_of(model_type: str) -> type[ProcessorMixin] | None:
    return getattr(transformers, PROCESSOR_MAPPING_NAMES.get(model_type) or "", None)


def takes_videos(model_type: str) -> bool:
    """Whether the processor of a model type has a part for videos."""
    kind = _class_of(model_type)
    return kind is not None and "video_processor" in kind.get_attributes()


def load_processor(
    folder: Path, config: PreTrainedConfig, min_pixels: int | None = None, max_pixels: int | None = None
) -> ProcessorMixin:
    """Load a checkpoint's processor: left padding, a pad token, a chat template, and bounds of images (`set_pixels`).

    Raises `ValueError` if its files are missing or damaged, if it has no chat template or pad token, or if its tokens
    are not those of `config`.
    """
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise ValueError(f"{folder} has no tokenizer: expected one of {', '.join(TOKENIZER_FILES)}")
    has_videos = takes_videos(config.model_type)
    loader = AutoProcessor
    if has_videos and not is_torchvision_available():
        loader = images_alone(_class_of(config.model_type))
    try:
        with silence():
            processor = loader.from_pretrained(folder)
            if has_videos:
                processor.video_processor = load_video_processor(folder, config.model_type)
    except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder} has no processor that loads (tokenizer and image processor): {reason}") from error
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(f"{folder} has no preprocessor_config.json: images cannot be prepared")
    check_processor(processor, config, folder)
    set_pixels(processor, min_pixels, max_pixels)
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
    token = (images.patch_size * images.merge_size) ** 2
    low, high = min_pixels or images.size["shortest_edge"], max_pixels or images.size["longest_edge"]
    if high < max(low, token):
        raise ValueError(
            f"images from {low} to {high} pixels (min_pixels, max_pixels): expected bounds in this order, the upper "
            f"one at least {token} (one visual token)"
        )
    images.size = {**dict(images.size), "shortest_edge": low, "longest_edge": high}


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int, folder: Path) -> None:
    """Set left padding and a pad token (the tokenizer's own, else unk, else eos).

    Raises `ValueError` if there is none of them, or if the tokenizer has more tokens than the model.
    """
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        if tokenizer.pad_token_id is None:
            raise ValueError(f"the tokenizer in {folder} has neither a pad, unk nor eos token: batches need one")
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model {vocab_size} (vocab_size): "
            "the files do not belong together"
        )


def check_processor(processor: ProcessorMixin, config: PreTrainedConfig, folder: Path) -> None:
    """Prepare the tokenizer; `ValueError` where a processor cannot serve a model (see `load_processor`)."""
    if any(family.makes_masks and config.model_type in family.model_types for family in FAMILIES):
        raise ValueError(
            f"{folder}: prompts of {config.model_type} need token types, which evaluation and chat do not make; prune "
            "the model in Python, with what its own processor returns"
        )
    if processor.chat_template is None:
        processor.chat_template = processor.tokenizer.chat_template
    if processor.chat_template is None:
        raise ValueError(
            f"{folder} has no chat template, which its prompts are made with: expected chat_template.jinja or "
            "chat_template.json beside the processor's files"
        )
    check_tokenizer(processor.tokenizer, config.get_text_config().vocab_size, folder)
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
