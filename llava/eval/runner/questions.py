"""LLaVA's question files: reading, checking and cutting into chunks, before any model is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.metrics.answer_files import ScoreError, field, read_jsonl

T = TypeVar("T")


class QuestionError(ValueError):
    """A question that cannot be asked; the message is one line with file and line number."""


@dataclass(frozen=True)
class Question:
    """One line of a question file.

    `index` counts the file's questions from 0, `where` is "file:line" for messages, `question_id` is the file's own
    (string or int), `image` the field as it stands and `path` the image inside the image folder, both None for a
    question in text alone.
    """

    index: int
    where: str
    question_id: str | int
    text: str
    image: str | None = None
    path: Path | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What names a question: id and text together, since MME and TextVQA use one id for all of an image."""
        return str(self.question_id), self.text


@dataclass(frozen=True)
class Skipped:
    """A question that --skip-bad leaves out, and why."""

    question: Question
    reason: str


def split_list(items: Sequence[T], chunks: int) -> list[Sequence[T]]:
    """Cut into `chunks` runs of ⌈len/chunks⌉ items as LLaVA does; the last ones may be shorter, or empty."""
    size = math.ceil(len(items) / chunks)
    return [items[size * k : size * (k + 1)] for k in range(chunks)]


def get_chunk(items: Sequence[T], chunks: int, index: int) -> Sequence[T]:
    """Chunk `index` (from 0) of `split_list`; `ValueError` unless there is such a chunk."""
    if chunks < 1 or not 0 <= index < chunks:
        raise ValueError(f"--chunk-idx {index} of --num-chunks {chunks}: expected 0 ≤ chunk-idx < num-chunks")
    return split_list(items, chunks)[index]


def read_questions(path: str | Path, image_folder: str | Path) -> list[Question]:
    """Read and check every line of a question file; no image is opened.

    Raises:
        QuestionError: unreadable file, a line that is no JSON object, a mistyped key, a missing one (but "image": then
            it is a question in text alone), a question asked twice (same id and text), `<image>` in a text, or an image
            path that leaves `image_folder` (absolute, "..", or a symbolic link out of it).

    """
    folder = Path(image_folder).expanduser()
    try:
        rows = read_jsonl(Path(path).expanduser(), "question file")
        questions = [_parse(index, where, row, folder) for index, (where, row) in enumerate(rows)]
    except ScoreError as error:
        raise QuestionError(str(error)) from None
    if not questions:
        raise QuestionError(f"question file {path} holds no question")
    first: dict[tuple[str, str], Question] = {}
    for question in questions:
        earlier = first.setdefault(question.key, question)
        if earlier is not question:
            line = earlier.where.rpartition(":")[2]
            raise QuestionError(
                f"{question.where}: question_id {question.question_id!r} was asked with the same text in line {line}"
            )
    return questions


def _parse(index: int, where: str, row: dict[str, Any], folder: Path) -> Question:
    question_id, text = field(row, "question_id", where, (str, int)), field(row, "text", where)
    if DEFAULT_IMAGE_TOKEN in text:
        raise QuestionError(f"{where}: the text contains {DEFAULT_IMAGE_TOKEN}; leave it out, the loader puts it in")
    if "image" not in row:
        return Question(index, where, question_id, text)
    image = field(row, "image", where)
    return Question(index, where, question_id, text, image, _inside(folder, image, where))


def _inside(folder: Path, image: str, where: str) -> Path:
    path = Path(image)
    if not image or path.is_absolute() or ".." in path.parts or "\0" in image:
        raise QuestionError(f"{where}: image {image!r} must be a path inside the image folder {folder}, without '..'")
    if not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise QuestionError(f"{where}: image {image!r} is a symbolic link out of the image folder {folder}")
    return folder / path


def require_images(questions: Sequence[Question], skip_bad: bool) -> tuple[list[Question], list[Skipped]]:
    """Separate the questions that can be asked from those whose image file is not there.

    Raises `QuestionError` for the first of the latter, unless `skip_bad`.
    """
    good, bad = [], []
    for question in questions:
        if question.path is not None and not question.path.is_file():
            bad.append(Skipped(question, f"image not found: {question.path}"))
        else:
            good.append(question)
    if bad and not skip_bad:
        raise refusal(bad[0])
    return good, bad


def refusal(skipped: Skipped) -> QuestionError:
    """The error to raise for a bad question when --skip-bad was not given."""
    return QuestionError(f"{skipped.question.where}: {skipped.reason} (--skip-bad leaves such questions out)")
