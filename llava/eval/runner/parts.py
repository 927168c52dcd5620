"""Where a run of `llava.eval.run` keeps its answers: one part a process while it goes on, one file when it is done.

    X.parts/0.jsonl …   answers as they come, with their times; gone when the run is finished
    X.jsonl             all answers in question order: the same bytes in every run of the same questions and settings
    X.times.jsonl       what differs between two runs, line by line: milliseconds, and prompts in the batch

Parts are put together by question, so that an interrupted run goes on with any number of processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import parse_answer, read_jsonl
from llava.eval.runner.answers import AnswersFile, replace_lines

Key = tuple[str, str]
MEASURED = ("milliseconds", "batch")


def part_of(answers_file: Path, index: int) -> Path:
    """The part of process `index`."""
    return parts_of(answers_file) / f"{index}.jsonl"


def times_file_of(answers_file: Path) -> Path:
    """`x.jsonl` → `x.times.jsonl`, in the same folder."""
    return answers_file.with_name(answers_file.name.removesuffix(".jsonl") + ".times.jsonl")


def parts_of(answers_file: Path) -> Path:
    """`x.jsonl` → `x.parts`, the folder of the parts."""
    return answers_file.with_name(answers_file.name.removesuffix(".jsonl") + ".parts")


def read_times(answers_file: Path) -> dict[Key, dict[str, Any]]:
    """The measured part of every answer's metadata, by (question id, prompt); nothing where there is no such file.

    Raises `ScoreError` for a broken one.
    """
    path = times_file_of(answers_file)
    if not path.is_file():
        return {}
    return {
        (str(row.get("question_id")), str(row.get("prompt"))): {name: row[name] for name in MEASURED if name in row}
        for _, row in read_jsonl(path, "times file")
    }


def gather(answers_file: Path, anew: bool = False) -> tuple[list[dict[str, Any]], int]:
    """Every answer that is there, each question's once, with its times; and the bytes of half-written lines cut off.

    With `anew` none of them; that nobody is writing them is made sure of then too.

    Raises:
        AnswersError: another run is writing, or a line is broken that is not the last of its file.
        ScoreError: a line is no answer.

    """
    times = {} if anew else read_times(answers_file)
    rows: dict[Key, dict[str, Any]] = {}
    repaired = 0
    files = [answers_file] if answers_file.exists() else []
    for path in [*files, *sorted(parts_of(answers_file).glob("*.jsonl"))]:
        with AnswersFile(path, anew) as part:
            repaired += part.repaired
            for number, row in enumerate(part.rows, start=1):
                answer = parse_answer(row, f"{path}:{number}")
                key = (answer.question_id, answer.prompt or "")
                if isinstance(row.get("metadata"), dict):
                    row["metadata"] = row["metadata"] | times.get(key, {})
                rows.setdefault(key, row)
    return list(rows.values()), repaired


def finish(answers_file: Path, rows: Iterable[Mapping[str, Any]], order: Mapping[Key, int]) -> None:
    """Write the finished files and remove the parts; a kill at any moment loses nothing."""
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
    replace_lines(times_file_of(answers_file), times)
    replace_lines(answers_file, answers)
    shutil.rmtree(parts_of(answers_file), ignore_errors=True)


def clear(answers_file: Path) -> None:
    """Remove every answer, for a run that begins anew."""
    shutil.rmtree(parts_of(answers_file), ignore_errors=True)
    for path in (answers_file, times_file_of(answers_file)):
        path.unlink(missing_ok=True)
