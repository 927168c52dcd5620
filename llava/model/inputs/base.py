"""`Inputs`: from questions and images to the keywords of `generate`, and from its output to answers.

Worker processes write prompts (`encode`) and preprocess images (`prepare`) without the model. The process that has the
model encodes each image once (`encode_images`), makes batches (`collate`) and decodes answers (`new_tokens`, `decode`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava.model.videos import Video


@dataclass(frozen=True)
class Turn:
    """A question, how many images and videos are shown before it, and its answer: None where the model is to write it.

    Images come first: "seen" and "media" lists of a prompt hold each turn's images, then its videos.
    """

    question: str
    images: int = 0
    answer: str | None = None
    videos: int = 0


@dataclass(frozen=True)
class ProcessedImage:
    """An image or video as a worker process prepares it: arrays of the model's vision part by name, no tensors.

    `ids`: the token ids that stand for it in a prompt, its visual tokens among them; empty where only the model knows.
    Tensors would come from the workers through shared memory, of which a container has little.
    """

    arrays: dict[str, np.ndarray]
    ids: list[int]


@dataclass(frozen=True)
class ImageFeatures:
    """An image or video ready for batches: `content` holds its features, or the pixels to encode in every prefill.

    `tokens`: number of its prompt tokens, of which `visual` are visual, the first of them number `first`; `grid`: rows
    and columns if the visual tokens are one row-major grid.
    """

    tokens: int
    visual: int
    content: Any
    first: int = 0
    grid: tuple[int, int] | None = None


class Inputs(ABC):
    """Converts questions and images to a model's inputs, and its output to answers.

    A row is a prompt's token ids, int list, with one `marker` per image and one `video_marker` per video, which is None
    where the model takes no videos. `limit`: tokens that a prompt may have, images included, or None; `name`: what
    writes the prompts, for people; `stop_string`: text that ends an answer where that is not the tokenizer's end token;
    `reserved`: texts that stand for images and that a question may not hold.
    """

    marker: int
    video_marker: int | None = None
    name: str
    limit: int | None
    stop_string: str | None = None
    reserved: tuple[str, ...]

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def encode(self, turns: Sequence[Turn]) -> list[int]:
        """Return the row of a conversation whose last turn has no answer yet.

        Raises `ValueError` for a question or answer that holds one of the `reserved` texts, and for a video where the
        model takes none.
        """
        if self.video_marker is None and any(turn.videos for turn in turns):
            raise ValueError("this model takes no videos: show it images")
        for turn in turns:
            for text in (turn.question, turn.answer or ""):
                held = next((word for word in self.reserved if word in text), None)
                if held is not None:
                    raise ValueError(f"the text holds {held}, which stands for an image in a prompt: leave it out")
        return self.tokenize(self.prompt(turns))

    def clean(self, answer: str) -> str:
        """Return an answer without the `reserved` texts, so that it can become part of a prompt."""
        for word in self.reserved:
            answer = answer.replace(word, "image")
        return answer

    def length(self, row: Sequence[int], seen: Sequence[ImageFeatures]) -> int:
        """Count the tokens of a prompt with its images and videos."""
        return len(row) - len(seen) + sum(image.tokens for image in seen)

    def visual_start(self, row: Sequence[int], seen: Sequence[ImageFeatures]) -> int | None:
        """Return the prompt position of the first visual token, None without an image."""
        markers = (self.marker, self.video_marker)
        return next(place for place, token in enumerate(row) if token in markers) + seen[0].first if seen else None

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Turn new tokens into answers, without special tokens and surrounding whitespace."""
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    @abstractmethod
    def prompt(self, turns: Sequence[Turn]) -> str:
        """Return the prompt text of a conversation, with one marker per image, up to the model's answer."""

    @abstractmethod
    def transcript(self, turns: Sequence[Turn]) -> str:
        """Return the text of a conversation in which every turn has its answer, as models are trained on it."""

    @abstractmethod
    def prepare(self, image: Image.Image | Video) -> ProcessedImage:
        """Preprocess one image (any mode) or video; needs no model."""

    @abstractmethod
    def encode_images(self, model: Any, pictures: Sequence[ProcessedImage]) -> list[ImageFeatures]:
        """Encode each image once for all prompts that contain it (if the model accepts features)."""

    @abstractmethod
    def collate(
        self, rows: Sequence[Sequence[int]], seen: Sequence[Sequence[ImageFeatures]], model: Any
    ) -> dict[str, Any]:
        """Return the keywords of `model.generate` for a left-padded batch, on the model's device, in its dtype."""

    @abstractmethod
    def training_batch(
        self, rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], seen: Sequence[Sequence[ProcessedImage]]
    ) -> dict[str, Any]:
        """Return the keywords of `model.forward` for training, on the CPU: pixels, and `labels` (-100: none) per id.

        `labels`: one per id of a row; those of image markers are not read.
        """

    @abstractmethod
    def new_tokens(self, output: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        """Return the new tokens `[B, n]` of what `generate` returned for `batch`."""

    @abstractmethod
    def tokenize(self, prompt: str) -> list[int]:
        """Return the row of a prompt's text."""


def left_padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack prompts of L_i ids (or labels) into int64 `[B, L]`, padded on the left, and their mask `[B, L]`."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask
