"""Training data in LLaVA's format: read, checked before the model loads, encoded sample by sample.

A file is one JSON list (or JSON lines). A sample has `conversations`, turns `{"from": "human"|"gpt", "value": text}`,
and with images `image`: a path under the image folder, or a list of them; each stands where a turn has an `<image>`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from llava.cli import UserError
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.model.images import check_image, read_image
from llava.model.inputs import Inputs, Turn
from llava.train.arguments import DataArguments
from llava.train.labels import encode
from llava.train.models import Prepared

_ROLES = ("human", "gpt")
_SHOWN = 3


@dataclass(frozen=True)
class Sample:
    """A conversation, its images, and where it is, for errors."""

    place: str
    turns: tuple[Turn, ...]
    images: tuple[Path, ...]


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read a data file; `UserError` unless it is a list (or lines) of JSON objects with `conversations`."""
    try:
        text = path.read_text(encoding="utf-8")
        samples = json.loads(text) if text[:1] == "[" else [json.loads(line) for line in text.splitlines() if line]
    except FileNotFoundError:
        raise UserError(f"--data_path {path}: no such file") from None
    except ValueError as error:
        raise UserError(f"--data_path {path} is neither a JSON list nor JSON lines: {error}") from error
    if not samples:
        raise UserError(f"--data_path {path} holds no samples")
    return samples


def parse(raw: dict[str, Any], place: str, folder: Path | None) -> Sample:
    """Turn one entry of a data file into a `Sample`.

    A first turn of the model is left out, and `<image>` may stand anywhere in a turn, as in LLaVA. Raises `UserError`
    with the place for roles that do not alternate, a last question without an answer, and images without markers or
    markers without images.
    """
    given = raw.get("conversations") if isinstance(raw, dict) else None
    if not isinstance(given, list) or not all(isinstance(turn, dict) and "value" in turn for turn in given):
        raise UserError(f"{place}: expected 'conversations', a list of {{'from': 'human' or 'gpt', 'value': text}}")
    given = given[1:] if given and given[0].get("from") != _ROLES[0] else given
    roles = [turn.get("from") for turn in given]
    wrong = next((n for n, role in enumerate(roles, 1) if role != _ROLES[(n - 1) % 2]), None)
    if wrong or not roles or len(roles) % 2:
        at = f"turn {wrong} is from {roles[wrong - 1]!r}" if wrong else f"there are {len(roles)} turns"
        raise UserError(f"{place}: roles must alternate, human first and gpt last; {at}")
    turns = []
    for question, answer in zip(given[::2], given[1::2], strict=True):
        text = question["value"]
        turns.append(
            Turn(text.replace(DEFAULT_IMAGE_TOKEN, "").strip(), text.count(DEFAULT_IMAGE_TOKEN), answer["value"])
        )
    images = raw.get("image") or []
    images = [images] if isinstance(images, str) else images
    markers = sum(turn.images for turn in turns)
    if markers != len(images):
        raise UserError(f"{place}: {markers} <image> markers for {len(images)} images ('image')")
    if images and folder is None:
        raise UserError(f"{place} has an image: give --image_folder")
    return Sample(place, tuple(turns), tuple(folder / name for name in images))


class TrainingData(Dataset):
    """The samples of a data file, encoded when they are asked for: a row, its labels, and its images.

    limit:
        tokens of a sample, visual ones included
    cut:
        whether a longer one is cut, as LLaVA does, or an error
    image_tokens:
        size (width, height) → tokens of such an image, or None where only processing it says
    """

    def __init__(
        self,
        path: Path,
        folder: Path | None,
        inputs: Inputs,
        limit: int,
        cut: bool,
        image_tokens: Callable[[tuple[int, int]], int | None],
    ):
        self.path, self.folder, self.inputs, self.limit, self.cut = path, folder, inputs, limit, cut
        self.image_tokens = image_tokens
        self.samples = read_samples(path)

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int) -> Sample:
        """Return one sample; raises `UserError` as `parse` does."""
        raw = self.samples[index]
        name = f" (id {raw['id']!r})" if isinstance(raw, dict) and "id" in raw else ""
        return parse(raw, f"{self.path.name}, sample {index}{name}", self.folder)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.sample(index)
        row, labels = encode(self.inputs, sample.turns, sample.place)
        pictures = [self.inputs.prepare(read_image(path)) for path in sample.images]
        counts = [len(picture.ids) or self.image_tokens(tuple(picture.arrays["image_size"])) for picture in pictures]
        row, labels = self._fit(sample, row, labels, counts)
        return {"row": row, "labels": labels, "pictures": pictures}

    def _fit(
        self, sample: Sample, row: list[int], labels: list[int], counts: Sequence[int | None]
    ) -> tuple[list, list]:
        """Return a row of at most `limit` tokens with its images; `UserError` where it has more and may not be cut."""
        visual = sum(count or 0 for count in counts) - len(counts)
        if len(row) + visual <= self.limit:
            return row, labels
        end = self.limit - visual
        if not self.cut or self.inputs.marker in row[max(end, 0) :] or not any(one >= 0 for one in labels[1:end]):
            raise UserError(
                f"{sample.place} has {len(row) + visual} tokens with its images, --model_max_length is {self.limit}: "
                "shorten it, or give --cut_long True where an answer and all images stay"
            )
        return row[:end], labels[:end]

    def lengths(self) -> list[int]:
        """Return the words of every sample, negative without an image: what LLaVA groups samples by."""
        counts = [sum(len(turn["value"].split()) for turn in raw["conversations"]) for raw in self.samples]
        return [count if raw.get("image") else -count for count, raw in zip(counts, self.samples, strict=True)]

    def check(self, progress: bool = True) -> None:
        """Parse and encode every sample and look at every image's header, without a model.

        Raises `UserError` with the first samples that cannot be trained on and how many there are.
        """
        sizes: dict[Path, int | None] = {}
        problems = []
        for index in tqdm(range(len(self)), desc="checking the data", unit="sample", disable=not progress, delay=2):
            try:
                sample = self.sample(index)
                for path in sample.images:
                    if path not in sizes:
                        sizes[path] = self.image_tokens(check_image(path))
                row, labels = encode(self.inputs, sample.turns, sample.place)
                self._fit(sample, row, labels, [sizes[path] for path in sample.images])
            except ValueError as error:
                known = str(error)
                problems.append(known if self.path.name in known else f"{self.path.name}, sample {index}: {known}")
        if problems:
            more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            count = f"{len(problems)} of {len(self)} samples cannot be trained on: " if len(problems) > 1 else ""
            raise UserError(count + "; ".join(problems[:_SHOWN]) + more)

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch as the model's `forward` takes it."""
        rows, labels, pictures = ([item[key] for item in items] for key in ("row", "labels", "pictures"))
        return self.inputs.training_batch(rows, labels, pictures)


class ModalityGroups(Sampler[int]):
    """Batches of one modality and of similar length, `--group_by_modality_length`, in LLaVA's order.

    lengths:
        per sample, negative without an image
    batch, world:
        samples per device and step; devices × accumulated steps. A megabatch (their product) is dealt so that its
        batches have about equal sums
    """

    def __init__(self, lengths: Sequence[int], batch: int, world: int, seed: int):
        if 0 in lengths:
            raise UserError("a sample without a word cannot be grouped by length: leave --group_by_modality_length out")
        self.lengths, self.batch, self.world, self.seed, self.epoch = lengths, batch, world, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        kinds = [[i for i, n in enumerate(self.lengths) if (n > 0) is shown] for shown in (True, False)]
        megabatches = [self._megabatches(indices, generator) for indices in kinds if indices]
        last = sorted(megabatches[0].pop() + megabatches[1].pop()) if len(megabatches) == 2 else []
        order = [one for kind in megabatches for one in kind]
        if last:
            order = [order[i] for i in torch.randperm(len(order), generator=generator).tolist()]
        return iter([index for megabatch in [*order, last] for index in megabatch])

    def _megabatches(self, indices: list[int], generator: torch.Generator) -> list[list[int]]:
        drawn = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
        size = self.world * self.batch
        parts = [drawn[i : i + size] for i in range(0, len(drawn), size)]
        return [self._deal(sorted(part, key=lambda i: -abs(self.lengths[i]))) for part in parts]

    def _deal(self, falling: list[int]) -> list[int]:
        """Deal samples into `world` batches, each to the one that has least so far."""
        if len(falling) % self.world:
            return [index for device in range(self.world) for index in falling[device :: self.world]]
        batches: list[list[int]] = [[] for _ in range(self.world)]
        sums = [0.0] * self.world
        for index in falling:
            least = sums.index(min(sums))
            batches[least].append(index)
            sums[least] += abs(self.lengths[index])
            if len(batches[least]) == len(falling) // self.world:
                sums[least] = float("inf")
        return [index for batch in batches for index in batch]


def load_data(prepared: Prepared, options: DataArguments) -> TrainingData:
    """Read the data that options name for a model; raises `UserError` as `read_samples` does."""
    folder = options.image_folder and Path(options.image_folder).expanduser()
    limit = min(options.model_max_length, prepared.inputs.limit or options.model_max_length)
    path = Path(options.data_path).expanduser()
    return TrainingData(path, folder, prepared.inputs, limit, options.cut_long, prepared.image_tokens)
