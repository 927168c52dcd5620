"""The answers of a run on disk: one writer per file, whole lines only, resumable.

    X.parts/0.jsonl …   answers as they come, one file per process, with what was measured; gone in the end
    X.jsonl             all answers in question order: the same bytes in every run of the same questions and settings
    X.times.jsonl       what differs between two runs, line by line: milliseconds, and prompts in the batch

Answers are found by question, so an interrupted run continues with any number of processes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.metrics.answer_files import Key, parse_answer, read_jsonl
from llava.eval.runner.questions import Question
from llava.files import replacing

try:
    import fcntl
except ImportError:  # Windows: no lock, two runs on one file are not noticed there
    fcntl = None

MEASURED = ("milliseconds", "batch")
ELSEWHERE = "write elsewhere (--out or --name; of model_vqa_loader --answers-file)"
AGAIN = f"start again with --overwrite, or {ELSEWHERE}"
CONTINUE = "mend that, and the same command (without --overwrite) continues from there"


class AnswersFile:
    """LLaVA's answers JSONL, open for appending; `rows` are the answers that it held, `repaired` the bytes cut off.

    A context manager. Opening creates the file and its folder, locks it against other runs and cuts off a half-written
    or garbled last line; a new file that is still empty when an exception leaves the block is removed. With `discard`
    existing content is neither read nor repaired.

    Raises:
        UserError: another run has the file open, it cannot be opened for writing, or a line other than the last is
            not a JSON object.

    """

    def __init__(self, path: str | Path, discard: bool = False):
        self.path = Path(path)
        self._discard = discard
        self.rows: list[dict[str, Any]] = []
        self.repaired = 0

    def __enter__(self) -> AnswersFile:
        self._created = not self.path.exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - closed in __exit__
        except OSError as error:
            raise UserError(f"{self.path} cannot be opened: {error.strerror}; mend that, or {ELSEWHERE}") from error
        try:
            self._lock()
            if not self._discard:
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
                raise UserError(f"another run is writing {self.path}; wait for it or stop it") from None
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
                raise UserError(
                    f"{self.path}:{number} is not a JSON object, so that the run cannot be continued; "
                    "repair the line, or start again with --overwrite"
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

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write answers, one line each, and return when they are on the disk."""
        if rows:
            self._write("".join(json.dumps(row) + "\n" for row in rows).encode())

    def _write(self, data: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):  # whole lines only
                self._file.truncate(end)
            raise UserError(f"{self.path} cannot be written: {error.strerror}; {CONTINUE}") from error


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def check_folder(path: Path) -> None:
    """Raise `UserError` if the answers folder cannot be created or written to; creates nothing."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    if not there.is_dir():
        raise UserError(f"the folder {path} cannot be made: {there} is not a folder; mend that, or {ELSEWHERE}")
    if not os.access(there, os.W_OK):
        raise UserError(f"the folder {path} cannot be written to; mend that, or {ELSEWHERE}")


def _beside(answers_file: Path, ending: str) -> Path:
    return answers_file.with_name(answers_file.name.removesuffix(".jsonl") + ending)


def parts_of(answers_file: Path) -> Path:
    """`x.jsonl` → `x.parts`, the folder of the parts."""
    return _beside(answers_file, ".parts")


def part_of(answers_file: Path, index: int) -> Path:
    """The part of process `index`."""
    return parts_of(answers_file) / f"{index}.jsonl"


def times_file_of(answers_file: Path) -> Path:
    """`x.jsonl` → `x.times.jsonl`, in the same folder."""
    return _beside(answers_file, ".times.jsonl")


def read_times(answers_file: Path) -> dict[Key, dict[str, Any]]:
    """The measured times of every answer, by (question id, prompt); empty without a file.

    Raises `UserError` for a broken one.
    """
    path = times_file_of(answers_file)
    if not path.is_file():
        return {}
    return {
        (str(row.get("question_id")), str(row.get("prompt"))): {name: row[name] for name in MEASURED if name in row}
        for _, row in read_jsonl(path, "times file")
    }


def gather(answers_file: Path, discard: bool = False) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """All existing answers with "file:line" and times; and the number of bytes of half-written lines cut off.

    An answer in the answers file and in a part (killed while the parts were put together) counts once. An answer's own
    times come before those of the times file, which may be older. With `discard` nothing is read, but it is still
    checked that nobody is writing.

    Raises:
        UserError: another run is writing, a line is broken that is not the last of its file, a line is no answer, or a
            file answers a question twice.

    """
    times = {} if discard else read_times(answers_file)
    rows: dict[Key, tuple[str, dict[str, Any]]] = {}
    repaired = 0
    files = [answers_file] if answers_file.exists() else []
    for path in [*files, *sorted(parts_of(answers_file).glob("*.jsonl"))]:
        with AnswersFile(path, discard) as part:
            repaired += part.repaired
            here: set[Key] = set()
            for number, row in enumerate(part.rows, start=1):
                where = f"{path}:{number}"
                try:
                    answer = parse_answer(row, where)
                except ValueError as error:
                    raise UserError(f"{error}; {AGAIN}") from None
                key = answer.key
                if key in here:
                    raise UserError(f"{where} is a second answer to question_id {key[0]!r}; {AGAIN}")
                here.add(key)
                if isinstance(row.get("metadata"), dict):
                    row["metadata"] = times.get(key, {}) | row["metadata"]
                rows.setdefault(key, (where, row))
    return list(rows.values()), repaired


def unanswered(
    rows: Iterable[tuple[str, dict[str, Any]]], known: Iterable[Question], selected: Iterable[Question]
) -> list[Question]:
    """Return the `selected` questions without an answer in `rows` (from `gather`).

    Raises `UserError` for an answer to none of the `known` questions.
    """
    keys, answered = {question.key for question in known}, set()
    for where, row in rows:
        key = (str(row["question_id"]), row.get("prompt") or "")
        if key not in keys:
            raise UserError(
                f"{where} is an answer to no question of the question file, question_id {key[0]!r}; {AGAIN}"
            )
        answered.add(key)
    return [question for question in selected if question.key not in answered]


def finish(answers_file: Path, rows: Iterable[Mapping[str, Any]], order: Mapping[Key, int]) -> None:
    """Write the finished files and remove the parts; safe against a kill at any moment."""
    ordered = sorted(rows, key=lambda row: order[str(row["question_id"]), row["prompt"]])
    times = [
        {"question_id": row["question_id"], "prompt": row["prompt"]}
        | {name: row["metadata"][name] for name in MEASURED if name in row["metadata"]}
        for row in ordered
    ]
    answers = [
        {**row, "metadata": {name: value for name, value in row["metadata"].items() if name not in MEASURED}}
        for row in ordered
    ]
    _replace_lines(times_file_of(answers_file), times)
    _replace_lines(answers_file, answers)
    shutil.rmtree(parts_of(answers_file), ignore_errors=True)


def clear(answers_file: Path) -> None:
    """Remove every answer, for a run that starts again."""
    shutil.rmtree(parts_of(answers_file), ignore_errors=True)
    for path in (answers_file, times_file_of(answers_file)):
        path.unlink(missing_ok=True)


def _replace_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file that appears whole or not at all."""
    try:
        with replacing(path) as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; {CONTINUE}") from error
