"""Question, reference and submission files: readers and writers that several benchmarks share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.metrics.answer_files import field, match, read_answers, read_json, read_jsonl, write_json


def question_row(question_id: str | int, image: str, text: str, category: str = "default") -> dict[str, Any]:
    """A line of a question file."""
    return {"question_id": question_id, "image": image, "text": text, "category": category}


def read_question_ids(path: str | Path, key: str = "question_id") -> dict[str, Any]:
    """Question id (as text) → the field `key` of a question file; `UserError` for an id that occurs twice."""
    fields: dict[str, Any] = {}
    for where, row in read_jsonl(path, "question file"):
        question_id = field(row, "question_id", where, (str, int))
        if str(question_id) in fields:
            raise UserError(f"{where}: question_id {question_id} occurs twice")
        fields[str(question_id)] = field(row, key, where, str if key == "image" else (str, int))
    return fields


def read_entries(path: Path, key: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list (under `key` of an object, if given), each with "file: entry number".

    Raises `UserError`: the file is missing or is not such a list.
    """
    data = read_json(path, "annotation file")
    entries = data if key is None else data.get(key) if isinstance(data, dict) else None
    if not isinstance(entries, list):
        what = "a list of annotations" if key is None else f'an object with a list under "{key}"'
        raise UserError(f"{path}: expected {what}, found {type(data).__name__}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: entry {number}: expected an object, found {type(entry).__name__}")
        yield f"{path}: entry {number}", entry


def matched(ids: Iterable[str], answers: str | Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Answers by question id, each question answered once, and the counts.

    Raises `UserError`: unreadable input; answers that do not cover the questions.
    """
    given = read_answers(answers)
    used, coverage = match(ids, [(answer.question_id, answer.where) for answer in given])
    texts = {given[place].question_id: given[place].text for place in used}
    return texts, coverage.to_dict() | {"empty": sum(not text.strip() for text in texts.values())}


def write_upload(path: Path, document: Any, counts: dict[str, Any], indent: int | None = None) -> dict[str, Any]:
    """Write a server's JSON file; returns "output" and the counts."""
    write_json(path, document, indent)
    return {"output": str(path)} | counts
