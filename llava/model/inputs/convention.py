"""LLaVA's convention: conversation templates, an `<image>` marker, one square of pixels and one grid of tokens each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import SeparatorStyle, conv_templates, find_template
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.images import to_rgb
from llava.model.pruning.devices import execution_device

from .base import ImageFeatures, Inputs, ProcessedImage, Turn, left_padded

DEFAULT_CONV_MODE = "vicuna_v1"


class ConventionInputs(Inputs):
    """Prompts of LLaVA's original layout; each image is encoded once by tower and projector."""

    marker = IMAGE_TOKEN_INDEX
    reserved = (DEFAULT_IMAGE_TOKEN,)

    def __init__(self, tokenizer: Any, image_processor: Any, model_config: Any, conv_mode: str = DEFAULT_CONV_MODE):
        super().__init__(tokenizer)
        self.image_processor, self.model_config, self.name = image_processor, model_config, conv_mode
        self.limit = model_config.tokenizer_model_max_length
        template = find_template(conv_mode)
        styles = (SeparatorStyle.SINGLE, SeparatorStyle.MPT, SeparatorStyle.PLAIN)
        self.stop_string = template.sep if template.sep_style in styles else None

    def prompt(self, turns: Sequence[Turn]) -> str:
        """Return the conversation in the template's words, images before the text of their question."""
        marker = DEFAULT_IMAGE_TOKEN
        if self.model_config.mm_use_im_start_end:
            marker = DEFAULT_IM_START_TOKEN + marker + DEFAULT_IM_END_TOKEN
        conversation = conv_templates[self.name].copy()
        for turn in turns:
            conversation.append_message(conversation.roles[0], f"{marker}\n" * turn.images + turn.question)
            conversation.append_message(conversation.roles[1], turn.answer)
        return conversation.get_prompt()

    def transcript(self, turns: Sequence[Turn]) -> str:
        """Return the conversation in the template's words."""
        return self.prompt(turns)

    def prepare(self, image: Image.Image) -> ProcessedImage:
        """Pad or crop an image to the tower's square, or cut it into tiles, as the model's configuration says."""
        image = to_rgb(image)
        pixels = process_images([image], self.image_processor, self.model_config)
        return ProcessedImage({"pixel_values": pixels[0].numpy(), "image_size": np.array(image.size)}, [])

    def encode_images(self, model: Any, pictures: Sequence[ProcessedImage]) -> list[ImageFeatures]:
        """Run tower and projector: `content` is an image's features `[V, D]`."""
        if not pictures:
            return []
        pixels = [torch.from_numpy(picture.arrays["pixel_values"]) for picture in pictures]
        features = model.encode_images(pixels, [picture.arrays["image_size"].tolist() for picture in pictures])
        return [ImageFeatures(len(image), len(image), image, grid=self._grid(len(image))) for image in features]

    def _grid(self, count: int) -> tuple[int, int] | None:
        side = math.isqrt(count)
        return (side, side) if side * side == count and self.model_config.image_aspect_ratio != "anyres" else None

    def collate(
        self, rows: Sequence[Sequence[int]], seen: Sequence[Sequence[ImageFeatures]], model: Any
    ) -> dict[str, Any]:
        """Return ids with markers, mask and features; the model puts the features in."""
        ids, mask = left_padded(rows, self.tokenizer.pad_token_id)
        features = [image.content for images in seen for image in images]
        device = execution_device(model)
        return {"inputs": ids.to(device), "attention_mask": mask.to(device), "image_features": features}

    def training_batch(
        self, rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], seen: Sequence[Sequence[ProcessedImage]]
    ) -> dict[str, Any]:
        """Return ids and labels with markers, mask and pixels; the model puts the features in."""
        ids, mask = left_padded(rows, self.tokenizer.pad_token_id)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": left_padded(labels, IGNORE_INDEX)[0]}
        pictures = [picture.arrays for images in seen for picture in images]
        if pictures:
            batch["images"] = [torch.from_numpy(arrays["pixel_values"]) for arrays in pictures]
            batch["image_sizes"] = [tuple(arrays["image_size"].tolist()) for arrays in pictures]
        return batch

    def new_tokens(self, output: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        """Return the output as it is: these models generate from embeddings."""
        return output

    def tokenize(self, prompt: str) -> list[int]:
        """Return the row of a prompt's text."""
        return tokenizer_image_token(prompt, self.tokenizer)
