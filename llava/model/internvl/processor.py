"""Tokenizer, tiles and prompts of InternVL2.5 and 3 from a folder in the original layout, without its remote code.

The prompt is what the published `chat()` builds: the `internvl2_5` conversation with its system message, an image as
`<img>`, one `<IMG_CONTEXT>` per visual token, `</img>` and a newline, before the question.
"""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import (
    AddedToken,
    InternVLProcessor,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2Tokenizer,
    SentencePieceBackend,
)
from transformers.image_utils import make_flat_list_of_images
from transformers.utils import is_torchvision_available

from llava.model.language_model.configuration_llava import read_json

if is_torchvision_available():
    from transformers import GotOcr2ImageProcessor as _Tiles
else:
    from transformers import GotOcr2ImageProcessorPil as _Tiles

IMAGE_START, IMAGE_END, IMAGE_CONTEXT, TURN_END = "<img>", "</img>", "<IMG_CONTEXT>", "<|im_end|>"
SYSTEM_MESSAGE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
"""The system message that the `internvl2_5` conversation was trained with."""
_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n' + SYSTEM + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class InternLM2Tokenizer(SentencePieceBackend):
    """InternLM2's tokenizer: sentencepiece's own ids for the text between added tokens, `<s>` before the whole.

    Decoding joins what sentencepiece makes of the pieces; added tokens are written without spaces around them.
    """

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to text, bytes included."""
        added = self.get_added_vocab()
        runs = groupby(tokens, key=added.__contains__)
        return "".join("".join(run) if is_added else self.sp_model.decode(list(run)) for is_added, run in runs)


class InternVLTiles(_Tiles):
    """transformers' InternVL tiling, with the thumbnail only where the checkpoint was trained with one."""

    def __init__(self, use_thumbnail: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.use_thumbnail = use_thumbnail

    def crop_image_to_patches(self, *args: Any, **kwargs: Any) -> Any:
        """Cut into tiles, row by row; the thumbnail, of more than one tile, comes last."""
        return super().crop_image_to_patches(*args, **kwargs | {"use_thumbnail": self.use_thumbnail})

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """Count the tiles of an image of this size (pixels), thumbnail included."""
        count = super().get_number_of_image_patches(height, width, images_kwargs)
        return count - 1 if count > 1 and not self.use_thumbnail else count


class InternVLImageProcessor(InternVLProcessor):
    """transformers' `InternVLProcessor` for images and text alone: its video part would need torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, image_seq_length: int = 256, chat_template=None):
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        self.image_token, self.start_image_token, self.end_image_token = IMAGE_CONTEXT, IMAGE_START, IMAGE_END
        ids = tokenizer.convert_tokens_to_ids([IMAGE_CONTEXT, IMAGE_START, IMAGE_END])
        self.image_token_id, self.start_image_token_id, self.end_image_token_id = ids
        self.multimodal_pattern = re.compile(f"(?P<image>{re.escape(IMAGE_CONTEXT)})")

    def validate_inputs(self, images=None, text=None, videos=None, **kwargs: Any) -> None:
        """Raise `ValueError` for videos, no text, or placeholders and images that do not match in number."""
        if videos is not None:
            raise ValueError("videos were given, but this processor reads images only: give their frames as images")
        given = 0 if images is None else len(make_flat_list_of_images(images))
        expected = sum(prompt.count(IMAGE_CONTEXT) for prompt in ([text] if isinstance(text, str) else text or []))
        if given != expected:
            raise ValueError(
                f"{given} images for {expected} placeholders {IMAGE_CONTEXT} in the text: give one for each"
            )
        super().validate_inputs(images=images, text=text, **kwargs)


def load_processor(folder: Path, raw: dict) -> InternVLImageProcessor:
    """Build the processor of a folder whose `config.json` holds `raw`.

    Its chat template takes transformers' messages; a prompt without a system turn gets the checkpoint's own message,
    and an image part becomes the image and a newline. For several images the published prompts say `Image-1: ` before
    the first, and so on: give that as text parts. Raises `ValueError` if the tokenizer cannot serve the model.
    """
    vision, dynamic = raw["vision_config"], raw.get("dynamic_image_size", False)
    side = raw.get("force_image_size") or vision["image_size"]
    tiles = InternVLTiles(
        use_thumbnail=raw.get("use_thumbnail", False),
        size={"height": side, "width": side},
        image_mean=_IMAGENET_MEAN,
        image_std=_IMAGENET_STD,
        crop_to_patches=dynamic,
        min_patches=raw.get("min_dynamic_patch", 1) if dynamic else 1,
        max_patches=raw.get("max_dynamic_patch", 6) if dynamic else 1,
    )
    tokens = int((side // vision.get("patch_size", 14)) ** 2 * raw.get("downsample_ratio", 0.5) ** 2)
    given = raw.get("system_message")
    message = json.dumps(SYSTEM_MESSAGE if given is None else given, ensure_ascii=False)
    tokenizer = load_tokenizer(folder, raw["llm_config"]["vocab_size"])
    tokenizer.chat_template = _TEMPLATE.replace(
        "SYSTEM", message
    )  # in place of the decoder's own, if its files have one
    return InternVLImageProcessor(tiles, tokenizer, image_seq_length=tokens, chat_template=tokenizer.chat_template)


def load_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """Load InternLM2's or Qwen2's tokenizer, left padding, with the ids of `tokenizer_config.json`.

    Raises `ValueError` if files or the image tokens are missing, if an added token gets another id than the files
    say, or if the tokenizer has more tokens than the model (`vocab_size`).
    """
    settings = read_json(folder / "tokenizer_config.json")
    kind = str(settings.get("tokenizer_class"))
    try:
        if kind.startswith("InternLM2Tokenizer"):
            tokenizer = _load_internlm2(folder, settings)
        elif kind.startswith("Qwen2Tokenizer"):
            tokenizer = Qwen2Tokenizer.from_pretrained(folder, padding_side="left")
        else:
            raise OSError("expected InternLM2Tokenizer or Qwen2Tokenizer as tokenizer_class")
    except (OSError, RuntimeError) as error:
        raise ValueError(f"the tokenizer in {folder} ({kind}) does not load: {str(error).splitlines()[0]}") from error
    vocabulary = tokenizer.get_vocab()
    needed = dict.fromkeys((IMAGE_START, IMAGE_END, IMAGE_CONTEXT, TURN_END, "<|im_start|>"))
    needed |= {token["content"]: int(index) for index, token in settings.get("added_tokens_decoder", {}).items()}
    for token, index in needed.items():
        if token not in vocabulary or index not in (None, vocabulary[token]):
            raise ValueError(
                f"the tokenizer in {folder} gives {token} the id {vocabulary.get(token)}, expected "
                f"{'one' if index is None else index}: its files are incomplete or do not belong together"
            )
    if max(vocabulary.values()) >= vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has the id {max(vocabulary.values())}, the model only {vocab_size} "
            f"(vocab_size): the files do not belong together"
        )
    return tokenizer


def _load_internlm2(folder: Path, settings: dict) -> InternLM2Tokenizer:
    if not (folder / "tokenizer.model").exists():
        raise OSError("no tokenizer.model")
    added = {int(index): AddedToken(**token) for index, token in settings.get("added_tokens_decoder", {}).items()}
    defaults = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    named = {name: settings.get(name) or token for name, token in defaults.items()}
    named = {name: token if isinstance(token, str) else token["content"] for name, token in named.items()}
    edges = [edge for edge, default in (("bos", True), ("eos", False)) if settings.get(f"add_{edge}_token", default)]
    return InternLM2Tokenizer(
        vocab_file=str(folder / "tokenizer.model"),
        added_tokens_decoder=added,
        extra_special_tokens=[t.content for t in added.values() if t.special and t.content not in named.values()],
        special_tokens_pattern="_".join(edges) or "none",
        model_max_length=settings.get("model_max_length"),
        padding_side="left",
        name_or_path=str(folder),
        **named,
    )
