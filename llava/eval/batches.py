"""Question batches ready for `generate`: worker processes read images, preprocess and tokenise ahead of the model."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.eval.questions import Question
from llava.mm_utils import process_images, tokenizer_image_token


@dataclass(frozen=True)
class Batch:
    """Some questions in order, with what the model needs of them.

    `input_ids`: L_i ids a question, one image marker each; `pixels`: float32 `[3, H, W]` of every image that the batch
    before did not have; `errors`: why an image could not be read. No tensors: those would come from the workers through
    shared memory, of which a container has little.
    """

    questions: list[Question]
    input_ids: list[list[int]]
    pixels: dict[Path, np.ndarray] = field(default_factory=dict)
    errors: dict[Path, str] = field(default_factory=dict)


def prompt_of(text: str, conv_mode: str, use_im_start_end: bool) -> str:
    """Return the prompt of one question about one image, as LLaVA's evaluation writes it."""
    image = DEFAULT_IMAGE_TOKEN
    if use_im_start_end:
        image = DEFAULT_IM_START_TOKEN + image + DEFAULT_IM_END_TOKEN
    conversation = conv_templates[conv_mode].copy()
    conversation.append_message(conversation.roles[0], f"{image}\n{text}")
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


def group(questions: Sequence[Question], asked: set[Question], size: int) -> list[list[Question]]:
    """Cut `questions` into batches of `size` and keep those `asked` of each.

    A resumed run so meets the same batches as one that was never interrupted.
    """
    runs = [questions[start : start + size] for start in range(0, len(questions), size)]
    return [kept for run in runs if (kept := [question for question in run if question in asked])]


class BatchDataset(Dataset):
    """Item i is batch i of `groups`; images of batch i - 1 are not read again."""

    def __init__(
        self, groups: list[list[Question]], tokenizer: Any, image_processor: Any, model_config: Any, conv_mode: str
    ):
        self.groups = groups
        self.tokenizer, self.image_processor, self.model_config = tokenizer, image_processor, model_config
        self.conv_mode = conv_mode

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Batch:
        questions = self.groups[index]
        before = {question.path for question in self.groups[index - 1]} if index else set()
        use_im_start_end = getattr(self.model_config, "mm_use_im_start_end", False)
        prompts = [prompt_of(question.text, self.conv_mode, use_im_start_end) for question in questions]
        batch = Batch(questions, [tokenizer_image_token(prompt, self.tokenizer) for prompt in prompts])
        for path in dict.fromkeys(question.path for question in questions):
            if path in before:
                continue
            try:
                with Image.open(path) as image:
                    pixels = process_images([image.convert("RGB")], self.image_processor, self.model_config)
                batch.pixels[path] = pixels[0].numpy()
            except Exception as error:  # decoders raise nearly anything on broken files; all of it becomes a message
                batch.errors[path] = f"image {path} cannot be read: {type(error).__name__}: {error}".splitlines()[0]
        return batch


def prepared(dataset: BatchDataset, workers: int) -> Iterator[Batch]:
    """Iterate over the batches in order, made by `workers` processes (0: by this one)."""
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers, worker_init_fn=_ignore_interrupts))


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one answers it


def left_padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack prompts of L_i ids into int64 `[B, L]`, padded on the left, and their attention mask `[B, L]`."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask
