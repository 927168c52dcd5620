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
