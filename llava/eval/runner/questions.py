"""LLaVA's question files: reading, checking and cutting into chunks, before any model is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from llava.cli import UserError
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.metrics.answer_files import field, read_jsonl
from llava.model.images import check_image
from llava.model.videos import check_video

T = TypeVar("T")
CHECKED_IMAGES = 10_000


@dataclass(frozen=True)
class Question:
    """One line of a question file.

    `index` counts the file's questions from 0, `where` is "file:line" for messages, `question_id` is the file's own
    (string or int), `images` the field "image" or "images" as it stands and `videos` the field "video" or "videos",
    `paths` the images and then the videos inside the image folder; all are empty for a question in text alone.
    """

    index: int
    where: str
    question_id: str | int
    text: str
    images: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()
    videos: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """The question's key: id and text, since MME and TextVQA use one id for all questions of an image."""
        return str(self.question_id), self.text

    @property
    def image(self) -> str | None:
        """The first image as written in the file; None for a text-only question."""
        return self.images[0] if self.images else None

    @property
    def path(self) -> Path | None:
        """Path of the first image or video; None for a text-only question."""
        return self.paths[0] if self.paths else None

    @property
    def video_paths(self) -> tuple[Path, ...]:
        """Paths of the videos."""
        return self.paths[len(self.images) :]


@dataclass(frozen=True)
class Skipped:
    """A question left out by --skip-bad, and the reason."""

    question: Question
    reason: str

    def refusal(self) -> UserError:
        """The error to raise when --skip-bad was not given."""
        return UserError(f"{self.question.where}: {self.reason} (--skip-bad leaves such questions out)")


def split_list(items: Sequence[T], chunks: int) -> list[Sequence[T]]:
    """Cut into `chunks` runs of ⌈len/chunks⌉ items as LLaVA does; the last ones may be shorter, or empty."""
    size = math.ceil(len(items) / chunks)
    return [items[size * k : size * (k + 1)] for k in range(chunks)]


def get_chunk(items: Sequence[T], chunks: int, index: int) -> Sequence[T]:
    """Chunk `index` (from 0) of `split_list`; `UserError` unless there is such a chunk."""
    if chunks < 1 or not 0 <= index < chunks:
        raise UserError(f"--chunk-idx {index} of --num-chunks {chunks}: expected 0 ≤ chunk-idx < num-chunks")
    return split_list(items, chunks)[index]


def read_questions(path: str | Path, image_folder: str | Path, follow_symlinks: bool = False) -> list[Question]:
    """Read and check every line of a question file; no image is opened.

    Raises:
        UserError: unreadable file, a line that is no JSON object, a mistyped key, a missing one (without "image",
            "images", "video" and "videos" it is a question in text alone), text that is not Unicode, a question asked
            twice (same id and text), `<image>` in a text, a file that is an image here and a video there, or a path
            that leaves `image_folder`: absolute, "..", or, unless `follow_symlinks`, a symbolic link out of it.

    """
    folder = Path(image_folder).expanduser()
    rows = read_jsonl(Path(path).expanduser(), "question file")
    questions = [_parse(index, where, row, folder, follow_symlinks) for index, (where, row) in enumerate(rows)]
    if not questions:
        raise UserError(f"question file {path} holds no question")
    first: dict[tuple[str, str], Question] = {}
    images = {path for question in questions for path in question.paths[: len(question.images)]}
    for question in questions:
        if both := next((path for path in question.video_paths if path in images), None):
            raise UserError(f"{question.where}: {both.name} is a video here and an image in another place of the file")
        earlier = first.setdefault(question.key, question)
        if earlier is not question:
            line = earlier.where.rpartition(":")[2]
            raise UserError(
                f"{question.where}: question_id {question.question_id!r} was asked with the same text in line {line}"
            )
    return questions


def _parse(index: int, where: str, row: dict[str, Any], folder: Path, follow: bool) -> Question:
    question_id, text = field(row, "question_id", where, (str, int)), field(row, "text", where)
    if DEFAULT_IMAGE_TOKEN in text:
        raise UserError(f"{where}: the text contains {DEFAULT_IMAGE_TOKEN}; leave it out, the loader puts it in")
    images, videos = (_names(row, where, kind) for kind in ("image", "video"))
    for name, value in [("question_id", question_id), ("text", text), *(("image", one) for one in images + videos)]:
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            broken = ascii(str(value)[error.start])
            raise UserError(
                f'{where}: key "{name}" holds {broken} alone, half of a character; write the whole character'
            ) from None
    paths = [_inside(folder, name, where, follow, "image") for name in images]
    paths += [_inside(folder, name, where, follow, "video") for name in videos]
    return Question(index, where, question_id, text, tuple(images), tuple(paths), tuple(videos))


def _names(row: dict[str, Any], where: str, kind: str) -> list[str]:
    """Return the paths under "image" or "images", or under "video" or "videos"."""
    key = f"{kind}s" if f"{kind}s" in row else kind
    names = field(row, key, where, (str, list)) if key in row else []
    names = [names] if isinstance(names, str) else names
    for name in names:
        if not isinstance(name, str):
            raise UserError(f'{where}: key "{key}" should hold {kind} paths, found {type(name).__name__}')
    return names


def _inside(folder: Path, name: str, where: str, follow_symlinks: bool, kind: str) -> Path:
    path = Path(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise UserError(f"{where}: {kind} {name!r} must be a path inside the image folder {folder}, without '..'")
    if not follow_symlinks and not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{where}: {kind} {name!r} is a symbolic link out of the image folder {folder} "
            "(--follow-symlinks accepts such links)"
        )
    return folder / path


def require_images(questions: Sequence[Question], skip_bad: bool) -> tuple[list[Question], list[Skipped]]:
    """Separate the questions that can be asked from those whose image or video is missing or is none.

    The first `CHECKED_IMAGES` are opened (of an image the header is read, of a video the first frame). Raises
    `UserError` for the first bad question, unless `skip_bad`.
    """
    problems: dict[Path, str | None] = {}
    good, bad = [], []
    for question in questions:
        for path in question.paths:
            if path not in problems:
                kind = "video" if path in question.video_paths else "image"
                problems[path] = _problem(path, kind, opened=len(problems) < CHECKED_IMAGES)
        reason = next((problems[path] for path in question.paths if problems[path]), None)
        if reason is None:
            good.append(question)
        else:
            bad.append(Skipped(question, reason))
    if bad and not skip_bad:
        raise bad[0].refusal()
    return good, bad


def _problem(path: Path, kind: str, opened: bool) -> str | None:
    if not path.is_file():
        return f"{kind} not found: {path}"
    if opened:
        try:
            check_video(path) if kind == "video" else check_image(path)
        except ValueError as error:
            return str(error)
    return None
