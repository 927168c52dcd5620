"""Question batches ready for the model: worker processes read images, preprocess and tokenise ahead of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from llava.cli import VideoOptions, one_line
from llava.eval.runner.questions import Question
from llava.model.images import read_image
from llava.model.inputs import Inputs, ProcessedImage, Turn
from llava.model.videos import read_video

SORTED_BATCHES = 8
MOST_GROUP_BATCHES = 8
MOST_GROUP_QUESTIONS = 64
IMAGE_GROUPS = 64


@dataclass(frozen=True)
class Group:
    """The questions of one batch, in order.

    `image_group`: number of the consecutive batches that it belongs to. Within an image group an image is encoded once
    and a prefix computed once. A group is never split between processes, so results do not depend on their number.
    """

    questions: tuple[Question, ...]
    image_group: int


@dataclass(frozen=True)
class Batch:
    """Questions in order, with their prepared model inputs.

    `rows`: token ids per question, one marker per image (`Inputs.encode`); `pictures`: images that no earlier batch of
    the image group has; `finished`: images that no later batch needs; `errors`: reasons of unreadable images;
    `refused`: reasons of refused questions (their rows are empty).
    """

    questions: list[Question]
    rows: list[list[int]]
    pictures: dict[Path, ProcessedImage] = field(default_factory=dict)
    finished: frozenset[Path] = frozenset()
    errors: dict[Path, str] = field(default_factory=dict)
    refused: dict[Question, str] = field(default_factory=dict)
    image_group: int = 0


def turns_of(question: Question) -> list[Turn]:
    """A benchmark's question as a conversation: one turn, with its images and videos if it has any."""
    return [Turn(question.text, images=len(question.images), videos=len(question.videos))]


def prompt_length(question: Question, inputs: Inputs) -> int:
    """Count a prompt's tokens without those of its image; 0 for a question that no prompt can hold."""
    try:
        return len(inputs.encode(turns_of(question)))
    except ValueError:
        return 0


def group(
    questions: Sequence[Question], asked: AbstractSet[Question], size: int, inputs: Inputs | None = None
) -> list[Group]:
    """Cut `questions` into batches of `size` and return those with a question in `asked`, whole.

    With `inputs`, the questions about an image come together, where the file has its first, and batches of several are
    formed by prompt length among `SORTED_BATCHES` batches' worth of neighbours, the questions about an image as one.
    The batches depend on `questions` and `size` alone: a resumed run, and one by any number of processes, meets the
    same ones.
    """
    ordered: list[Question] = []
    neighbours = questions if inputs is None else by_image(questions)
    for start in range(0, len(neighbours), SORTED_BATCHES * size):
        stretch = neighbours[start : start + SORTED_BATCHES * size]
        ordered += stretch if inputs is None or size == 1 else _by_length(stretch, inputs)
    batches = [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
    numbers = _number_groups(batches, size)
    return [
        Group(batch, number)
        for number, batch in zip(numbers, batches, strict=True)
        if any(one in asked for one in batch)
    ]


def by_image(questions: Sequence[Question]) -> list[Question]:
    """Group questions by image, stable, at the position of each image's first question."""
    together: dict[tuple[Path, ...] | Question, list[Question]] = {}
    for question in questions:
        together.setdefault(question.paths or question, []).append(question)
    return [question for members in together.values() for question in members]


def _by_length(questions: Sequence[Question], inputs: Inputs) -> list[Question]:
    """Sort by prompt length: the questions of an image among themselves, and images by their shortest prompt."""
    runs = [list(members) for _, members in groupby(questions, key=lambda one: one.paths or one)]
    lengths = {one: prompt_length(one, inputs) for one in questions}
    ordered = [sorted(members, key=lengths.__getitem__) for members in runs]
    ordered.sort(key=lambda members: lengths[members[0]])
    return [question for members in ordered for question in members]


def _number_groups(batches: Sequence[Sequence[Question]], size: int) -> list[int]:
    """Number the image groups of batches: a few batches each, more if the last image continues.

    That may be `MOST_GROUP_QUESTIONS`, but no more than an eighth of all batches, which several processes share.
    """
    length = max(1, min(MOST_GROUP_BATCHES, len(batches) // IMAGE_GROUPS))
    room = max(MOST_GROUP_BATCHES, MOST_GROUP_QUESTIONS // size)
    most = max(length, min(room, len(batches) // 8))
    numbers, number, held = [], 0, 0
    before: set[Path] = set()
    for batch in batches:
        shown = {path for question in batch for path in question.paths}
        if held == most or (held >= length and not before & shown):
            number, held = number + 1, 0
        numbers.append(number)
        before, held = shown, held + 1
    return numbers


def shares_images(groups: Sequence[Group]) -> bool:
    """Whether two questions of an image group show the same image, so that a prefix can be reused."""
    for _, members in groupby(groups, key=lambda one: one.image_group):
        shown = [path for one in members for question in one.questions for path in question.paths]
        if len(set(shown)) < len(shown):
            return True
    return False


def share(groups: Sequence[Group], index: int, count: int) -> list[Group]:
    """Share `index` of `count`: consecutive whole image groups, about equally many batches per share."""
    image_groups = [list(members) for _, members in groupby(groups, key=lambda one: one.image_group)]
    mine, before = [], 0
    for members in image_groups:
        middle = before + len(members) / 2
        if int(middle * count / len(groups)) == index:
            mine += members
        before += len(members)
    return mine


def _fresh(groups: Sequence[Group]) -> list[list[Path]]:
    """Return each batch's images that no earlier batch of its image group contains."""
    fresh = []
    for _, members in groupby(groups, key=lambda one: one.image_group):
        known: set[Path] = set()
        for one in members:
            shown = dict.fromkeys(path for question in one.questions for path in question.paths)
            fresh.append([path for path in shown if path not in known])
            known |= shown.keys()
    return fresh


class BatchDataset(Dataset):
    """Item i is batch i of `groups`; an image that an earlier batch of its image group shows is not read again.

    `rule`: which frames of videos are shown.
    """

    def __init__(self, groups: list[Group], inputs: Inputs, rule: VideoOptions | None = None):
        self.groups, self.inputs, self.rule = groups, inputs, rule
        self._new, self._finished = _fresh(groups), _fresh(groups[::-1])[::-1]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Batch:
        one = self.groups[index]
        batch = Batch(list(one.questions), [], finished=frozenset(self._finished[index]), image_group=one.image_group)
        for question in batch.questions:
            try:
                batch.rows.append(self.inputs.encode(turns_of(question)))
            except ValueError as error:
                batch.rows.append([])
                batch.refused[question] = str(error)
        videos = {path for question in batch.questions for path in question.video_paths}
        for path in self._new[index]:
            try:
                read = read_video(path, self.rule) if path in videos else read_image(path)
                batch.pictures[path] = self.inputs.prepare(read)
            except ValueError as error:
                batch.errors[path] = str(error)
            except Exception as error:  # processors raise nearly anything on odd images; all of it becomes a message
                kind = "video" if path in videos else "image"
                batch.errors[path] = f"{kind} {path} cannot be used: {one_line(error)}"
        return batch


def prepared(dataset: BatchDataset, workers: int) -> Iterator[Batch]:
    """Iterate over the batches in order, made by `workers` processes (0: by this one)."""
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers, worker_init_fn=_ignore_interrupts))


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one answers it
