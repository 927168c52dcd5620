"""From prompt and images to tensors: `<image>` markers, padding to a square, stop words (LLaVA's `mm_utils`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.model.anyres import process_anyres_image
from llava.model.images import to_rgb


def tokenizer_image_token(
    prompt: str, tokenizer: Any, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | torch.Tensor:
    """Tokenise a prompt with `<image>` in it: each marker becomes `image_token_index`.

    The text between markers is tokenised chunk by chunk, as LLaVA was trained: every chunk is a text of its own
    (a sentencepiece tokenizer puts its word mark "▁" before each), and only the first keeps its BOS.

    Returns a list of ids, or with `return_tensors="pt"` an int64 tensor `[L]`.
    Raises `ValueError` for another `return_tensors`.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors is {return_tensors!r}: only None (a list) and 'pt' are supported")
    ids, _ = _tokenize_chunks(prompt, tokenizer, image_token_index)
    return torch.tensor(ids, dtype=torch.long) if return_tensors == "pt" else ids


def image_token_offsets(prompt: str, tokenizer: Any) -> list[tuple[int, int]]:
    """Return the characters (start, end) of `prompt` that each token of `tokenizer_image_token` stands for.

    (0, 0) for a BOS; needs a tokenizer of the tokenizers library.
    """
    return _tokenize_chunks(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_offsets_mapping=True)[1]


def _tokenize_chunks(
    prompt: str, tokenizer: Any, image_token_index: int, **options: Any
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the ids, and with `return_offsets_mapping` in `options` the characters of each."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    start = 0
    for number, chunk in enumerate(prompt.split(DEFAULT_IMAGE_TOKEN)):
        # sentencepiece marks the start of a text whatever it starts with: " a" is "▁▁a". The Metaspace of
        # transformers 5 takes a leading space for that mark and so loses it; a second space restores it.
        restored = chunk.startswith(" ") and tokenizer(" a").input_ids == tokenizer("a").input_ids
        made = tokenizer(" " * restored + chunk, **options)
        skip = number > 0 and made.input_ids[:1] == [tokenizer.bos_token_id]
        if number:
            ids.append(image_token_index)
            offsets.append((start, start + len(DEFAULT_IMAGE_TOKEN)))
            start += len(DEFAULT_IMAGE_TOKEN)
        ids += made.input_ids[skip:]
        shift = start - restored
        for first, end in made.get("offset_mapping", [])[skip:]:
            offsets.append((max(first + shift, start), end + shift) if end > first else (0, 0))
        start += len(chunk)
    return ids, offsets


def expand2square(image: Image.Image, background_color: tuple[int, ...]) -> Image.Image:
    """Pad an image `(w, h)` with a colour to `(max(w, h), max(w, h))`, the image in the middle (rounded down)."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), background_color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def process_images(
    images: Sequence[Image.Image], image_processor: Any, model_cfg: Any
) -> torch.Tensor | list[torch.Tensor]:
    """Turn PIL images into the tower's input, float32 `[N, 3, H, W]`.

    `model_cfg.image_aspect_ratio` "pad" pads with the processor's mean colour to a square first; "square" or None
    leaves it to the processor (resize, then centre crop); "anyres" (LLaVA-1.6) cuts each image into tiles: `[N, 1 +
    tiles, 3, H, W]`, a list where images have different numbers of them. Raises `ValueError` for other values.
    """
    check_aspect_ratio(ratio := getattr(model_cfg, "image_aspect_ratio", None))
    images = [to_rgb(image) for image in images]
    if ratio == "anyres":
        tiles = [process_anyres_image(image, image_processor, model_cfg.image_grid_pinpoints) for image in images]
        return torch.stack(tiles) if len({len(one) for one in tiles}) == 1 else tiles
    if ratio == "pad":
        mean_color = tuple(int(channel * 255) for channel in image_processor.image_mean)
        images = [expand2square(image, mean_color) for image in images]
    return image_processor(images, return_tensors="pt")["pixel_values"]


def check_aspect_ratio(ratio: str | None) -> None:
    """Raise `ValueError` unless `process_images` can prepare images for this `image_aspect_ratio`."""
    if ratio not in ("pad", "square", "anyres", None):
        raise ValueError(f"image_aspect_ratio {ratio!r} is not supported: expected 'pad', 'square' or 'anyres'")


def get_model_name_from_path(model_path: str) -> str:
    """Last part of a path or hub name; for `…/NAME/checkpoint-N`, `NAME_checkpoint-N`."""
    parts = model_path.strip("/").split("/")
    return "_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1]


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stop a sample as soon as its answer holds one of the keywords.

    `generate` runs on embeddings and passes only new tokens here, so a keyword in the prompt does not count.
    `input_ids` is accepted for LLaVA's callers, and ignored.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: torch.Tensor | None = None):
        self.keywords = tuple(keywords)
        self.tokenizer = tokenizer
        # a token stands for one byte at least, so a keyword that has just been completed lies within this many tokens
        self.window = max((len(keyword.encode()) for keyword in self.keywords), default=0) + 1

    def __call__(self, output_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Take new tokens int64 `[B, n]`; return bool `[B]`, True where a keyword has appeared."""
        texts = self.tokenizer.batch_decode(output_ids[:, -self.window :], skip_special_tokens=True)
        done = [any(keyword in text for keyword in self.keywords) for text in texts]
        return torch.tensor(done, dtype=torch.bool, device=output_ids.device)
