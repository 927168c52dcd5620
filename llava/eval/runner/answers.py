"""The answers file while it is written: one owner, whole lines only, continued where an earlier run stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import ScoreError, parse_answer
from llava.eval.runner.questions import Question
from llava.files import replacing

try:
    import fcntl
except ImportError:  # Windows: no lock, two runs on one file are not noticed there
    fcntl = None


ELSEWHERE = "write elsewhere (--answers-file; of llava.eval.run --name or --out)"
GO_ON = "mend that, and the same command (without --overwrite) goes on from there"


class AnswersError(ValueError):
    """An answers file that cannot be continued; the message is one line that says what to do."""


class AnswersFile:
    """LLaVA's answers JSONL, open for appending; `rows` are the answers that it held, `repaired` the bytes cut off.

    A context manager. Opening creates the file and its folder, locks it against other runs and cuts off a half-written
    or garbled last line; a file that was created and is still empty when an exception leaves the block is removed
    again. With `anew` what the file holds is neither read nor repaired, and gone after `clear()`.

    Raises:
        AnswersError: another run has the file open, it cannot be opened for writing, or a line other than the last is
            not a JSON object.

    """

    def __init__(self, path: str | Path, anew: bool = False):
        self.path = Path(path)
        self._anew = anew
        self.rows: list[dict[str, Any]] = []
        self.repaired = 0

    def __enter__(self) -> AnswersFile:
        make_folder(self.path.parent)
        self._created = not self.path.exists()
        try:
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - closed in __exit__
        except OSError as error:
            raise AnswersError(f"{self.path} cannot be opened: {error.strerror}; mend that, or {ELSEWHERE}") from error
        try:
            self._lock()
            if not self._anew:
                self._recover()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None and self._created and self._file.seek(0, os.SEEK_END) == 0:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _lock(self) -> None:
        # A POSIX record lock: unlike flock it is not inherited by worker processes that outlive a killed run. It goes
        # when any handle on the file is closed, so everything here goes through self._file.
        if fcntl is not None:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AnswersError(f"another run is writing {self.path}; wait for it or stop it") from None
            except OSError:
                pass  # a file system without locks

    def _recover(self) -> None:
        self._file.seek(0)
        content = self._file.readall()
        end = content.rfind(b"\n") + 1
        last = content.rfind(b"\n", 0, end - 1) + 1
        if end == len(content) and _object(content[last:end]) is None:  # whole, but garbled
            end = last
        for number, line in enumerate(content[:end].split(b"\n")[:-1], start=1):
            row = _object(line)
            if row is None:
                raise AnswersError(
                    f"{self.path}:{number} is not a JSON object, so that the run cannot be continued; "
                    "repair the line, or start anew with --overwrite"
                )
            self.rows.append(row)
        if end == len(content):
            return
        row = _object(content[end:])
        if row is None:
            self.repaired = len(content) - end
            self._file.truncate(end)
        else:  # only its line break is missing
            self.rows.append(row)
            self._write(b"\n")

    def clear(self) -> None:
        """Begin anew: forget all answers."""
        self._file.truncate(0)
        self.rows = []

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write answers, one line each, and return when they are on the disk."""
        if rows:
            self._write("".join(json.dumps(row) + "\n" for row in rows).encode())

    def sort(self, order: Mapping[tuple[str, str], int]) -> None:
        """Put the answers in the order of their questions, all at once; `order`: a question's place by its key.

        The last thing to do with the file: what is appended after it is lost.
        """
        self._file.seek(0)
        rows = [json.loads(line) for line in self._file.readall().split(b"\n") if line]
        places = [order[str(row["question_id"]), row["prompt"]] for row in rows]
        if places != sorted(places):
            by_place = sorted(zip(places, rows, strict=True), key=lambda pair: pair[0])
            replace_lines(self.path, [row for _, row in by_place])

    def _write(self, data: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            _write_all(self._file, data)
        except OSError as error:
            with suppress(OSError):  # whole lines only
                self._file.truncate(end)
            raise AnswersError(f"{self.path} cannot be written: {error.strerror}; {GO_ON}") from error


def make_folder(path: Path) -> None:
    """Make the folder that answers go to; `AnswersError` where it cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnswersError(f"the folder {path} cannot be made: {error.strerror}; mend that, or {ELSEWHERE}") from error
    if not os.access(path, os.W_OK):
        raise AnswersError(f"the folder {path} cannot be written to; mend that, or {ELSEWHERE}")


def _write_all(file: Any, data: bytes) -> None:
    """Write to an unbuffered file, and return when everything is on the disk."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())


def replace_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file that appears whole or not at all; `AnswersError` where it cannot be written."""
    try:
        with replacing(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:
        raise AnswersError(f"{path} cannot be written: {error.strerror}; {GO_ON}") from error


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def unanswered(
    path: Path, rows: Iterable[dict[str, Any]], known: Iterable[Question], selected: Iterable[Question]
) -> list[Question]:
    """Return the `selected` questions that `rows`, the answers in `path`, do not answer yet.

    Raises:
        AnswersError: an answer to none of the `known` questions, a second answer to one, or a line that is no answer.

    """
    keys = {question.key for question in known}
    answered: set[tuple[str, str]] = set()
    for number, row in enumerate(rows, start=1):
        try:
            answer = parse_answer(row, f"{path}:{number}")
        except ScoreError as error:
            raise AnswersError(f"{error}; start anew with --overwrite, or {ELSEWHERE}") from None
        key = (answer.question_id, answer.prompt or "")
        if key not in keys or key in answered:
            problem = "a second answer to" if key in answered else "an answer to no question of the question file,"
            raise AnswersError(
                f"{answer.where} is {problem} question_id {answer.question_id!r}; "
                f"start anew with --overwrite, or {ELSEWHERE}"
            )
        answered.add(key)
    return [question for question in selected if question.key not in answered]
