"""Question batches ready for the model: worker processes read images, preprocess and tokenise ahead of it."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from llava.eval.questions import Question
from llava.model.inputs import Inputs, Picture, Turn

SORTED_BATCHES = 8
LARGEST_UNIT = 8
UNITS = 64


@dataclass(frozen=True)
class Group:
    """The questions of one batch, in order.

    `unit`: the run of batches that it belongs to. Within a unit an image is read and looked at once; a unit is never
    cut between processes, so that what is computed together does not depend on their number.
    """

    questions: tuple[Question, ...]
    unit: int


@dataclass(frozen=True)
class Batch:
    """Some questions in order, with what the model needs of them.

    `rows`: a question's token ids, one marker an image (`Inputs.encode`); `pictures`: every image that the unit's
    batches before did not have; `errors`: why an image could not be read; `refused`: why a question cannot be asked,
    its row is empty.
    """

    questions: list[Question]
    rows: list[list[int]]
    pictures: dict[Path, Picture] = field(default_factory=dict)
    errors: dict[Path, str] = field(default_factory=dict)
    refused: dict[Question, str] = field(default_factory=dict)
    unit: int = 0


def turns_of(question: Question) -> list[Turn]:
    """A benchmark's question as a conversation: one turn, with its image if it has one."""
    return [Turn(question.text, images=int(question.path is not None))]


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

    With `inputs`, batches of several are formed by prompt length among `SORTED_BATCHES` batches' worth of neighbours in
    the file, which so stay close to the others of their image. The batches depend on `questions` and `size` alone: a
    resumed run, and one by any number of processes, meets the same ones.
    """
    ordered: list[Question] = []
    for start in range(0, len(questions), SORTED_BATCHES * size):
        stretch = questions[start : start + SORTED_BATCHES * size]
        if inputs is not None and size > 1:
            stretch = sorted(stretch, key=lambda one: prompt_length(one, inputs))
        ordered += stretch
    batches = [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
    length = max(1, min(LARGEST_UNIT, len(batches) // UNITS))
    return [Group(batch, place // length) for place, batch in enumerate(batches) if any(one in asked for one in batch)]


def share(groups: Sequence[Group], index: int, count: int) -> list[Group]:
    """Share `index` of `count`: a run of whole units, with about as many batches as the others."""
    units = [list(members) for _, members in groupby(groups, key=lambda one: one.unit)]
    mine, before = [], 0
    for unit in units:
        middle = before + len(unit) / 2
        if int(middle * count / len(groups)) == index:
            mine += unit
        before += len(unit)
    return mine


class BatchDataset(Dataset):
    """Item i is batch i of `groups`; an image that an earlier batch of its unit shows is not read again."""

    def __init__(self, groups: list[Group], inputs: Inputs):
        self.groups, self.inputs = groups, inputs
        self._new: list[list[Path]] = []
        unit, known = None, set()
        for one in groups:
            if one.unit != unit:
                unit, known = one.unit, set()
            shown = dict.fromkeys(question.path for question in one.questions if question.path is not None)
            self._new.append([path for path in shown if path not in known])
            known |= shown.keys()

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Batch:
        batch = Batch(list(self.groups[index].questions), [], unit=self.groups[index].unit)
        for question in batch.questions:
            try:
                batch.rows.append(self.inputs.encode(turns_of(question)))
            except ValueError as error:
                batch.rows.append([])
                batch.refused[question] = str(error)
        for path in self._new[index]:
            try:
                batch.pictures[path] = self.inputs.prepare(read_image(path))
            except Exception as error:  # decoders raise nearly anything on broken files; all of it becomes a message
                batch.errors[path] = f"image {path} cannot be read: {type(error).__name__}: {error}".splitlines()[0]
        return batch


def read_image(path: Path) -> Image.Image:
    """Read an image as RGB.

    Raises `PIL.Image.DecompressionBombError` or `DecompressionBombWarning`, before anything is decoded, for an image of
    more pixels than PIL's limit (`Image.MAX_IMAGE_PIXELS`), and whatever a decoder raises for a broken one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            return image.convert("RGB")


def prepared(dataset: BatchDataset, workers: int) -> Iterator[Batch]:
    """Iterate over the batches in order, made by `workers` processes (0: by this one)."""
    return iter(DataLoader(dataset, batch_size=None, num_workers=workers, worker_init_fn=_ignore_interrupts))


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one answers it
