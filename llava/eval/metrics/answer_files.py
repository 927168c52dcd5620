"""Answers files: reading them, and matching answers with the questions they belong to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.files import replacing

Key = tuple[str, str]
"""(question id, prompt): what names a question, since MME and TextVQA use one id for all questions of an image."""


@dataclass(frozen=True)
class Answer:
    """One line of an answers file as `llava.eval.model_vqa_loader` writes it.

    `question_id` is always a string (benchmarks mix ints and strings), `prompt` is None where the line has none,
    `text` is the model's answer as it stands, `where` is "file:line" for messages.
    """

    question_id: str
    prompt: str | None
    text: str
    where: str

    @property
    def key(self) -> Key:
        """The question's key (id, prompt); the prompt is "" if the line has none."""
        return self.question_id, self.prompt or ""

    @property
    def asked(self) -> str:
        """The prompt; `UserError` if the line has none."""
        if self.prompt is None:
            raise UserError(f'{self.where}: key "prompt" is missing; the question is found through it')
        return self.prompt


@dataclass(frozen=True)
class Coverage:
    """How the answers cover the expected questions: counts of questions and of answer lines.

    `expected` = `answered` + `missing`; `duplicates` and `unknown` count answer lines that were not used.
    """

    expected: int
    answered: int
    missing: int
    duplicates: int
    unknown: int

    @property
    def complete(self) -> bool:
        """True when each question has exactly one answer and no answer is left over."""
        return not (self.missing or self.duplicates or self.unknown)

    def describe(self) -> str:
        """The counts in words, for messages and tables."""
        return (
            f"{self.answered} of {self.expected} questions answered, {self.missing} missing, "
            f"{self.duplicates} duplicate answers, {self.unknown} answers to unknown questions"
        )

    def to_dict(self) -> dict[str, Any]:
        """The counts for a scorer's JSON line; "partial" is True when the score does not cover the benchmark."""
        counts = {"questions": self.expected, "answered": self.answered, "missing": self.missing}
        return counts | {"duplicates": self.duplicates, "unknown": self.unknown, "partial": not self.complete}


def _read_text(path: str | Path, what: str) -> str:
    try:
        content = Path(path).read_bytes()
        return content.decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"{what} not found: {path}") from None
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; convert the {what}") from None


def read_json(path: str | Path, what: str) -> Any:
    """The JSON document in `path`; `what` names the file's role in messages.

    Raises `UserError`: the file is missing, unreadable or not JSON (with line and column).
    """
    text = _read_text(path, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{what} {path} is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None


def read_jsonl(path: str | Path, what: str, torn: bool = False) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its "file:line"; blank lines are skipped.

    torn: leave out a last line that is broken, as in a file that is being written

    Raises `UserError`: the file is missing or unreadable, or a line is not one JSON object.
    """
    rows = []
    # Not str.splitlines: that also breaks at U+2028 and the like, which JSON strings may contain unescaped.
    lines = _read_text(path, what).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if torn and number == len(lines):
                break
            hint = " (the file ends inside this line; run what wrote it again)" if number == len(lines) else ""
            raise UserError(f"{what} {path} is not valid JSON at line {number}: {error.msg}{hint}") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected a JSON object, found {type(row).__name__}")
        rows.append((where, row))
    return rows


def field(row: dict[str, Any], key: str, where: str, kind: type | tuple[type, ...] = str) -> Any:
    """`row[key]`, checked to be present and of type `kind`; a UserError names `where` otherwise."""
    if key not in row:
        raise UserError(f'{where}: key "{key}" is missing; found {", ".join(sorted(row)) or "no keys"}')
    if not isinstance(row[key], kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(k.__name__ for k in kinds)
        raise UserError(f'{where}: key "{key}" should be {names}, found {type(row[key]).__name__}')
    return row[key]


def parse_answer(row: dict[str, Any], where: str) -> Answer:
    """One row of an answers file as an `Answer`; a UserError names a missing or mistyped key."""
    prompt = field(row, "prompt", where) if row.get("prompt") is not None else None
    return Answer(str(field(row, "question_id", where, (str, int))), prompt, field(row, "text", where), where)


def read_answers(path: str | Path) -> list[Answer]:
    """All answers of a file, in file order (UserError as in `read_jsonl`)."""
    return [parse_answer(row, where) for where, row in read_jsonl(path, "answers file")]


def match(
    expected: Iterable[Hashable], given: Sequence[tuple[Hashable, str]], partial: bool = False
) -> tuple[list[int], Coverage]:
    """Match answers with the expected questions: one answer per question.

    Args:
        expected: the key of every question; a key that occurs k times is a question asked k times.
        given: (key, where) of every answer, in file order.
        partial: score what is answered (the first answer of each question) instead of raising.

    Returns:
        The indices into `given` to score, ascending, and the counts.

    Raises:
        UserError: questions without an answer, several answers to one question, or answers to no known question and
            `partial` is False; or nothing at all to score.

    """
    open_questions = Counter(iter(expected))  # iter: Counter would take a mapping's values for counts
    known = set(open_questions)
    total = open_questions.total()
    used: list[int] = []
    duplicates: list[str] = []
    unknown: list[str] = []
    for index, (key, where) in enumerate(given):
        if key not in known:
            unknown.append(where)
        elif open_questions[key] == 0:
            duplicates.append(where)
        else:
            open_questions[key] -= 1
            used.append(index)
    coverage = Coverage(total, len(used), total - len(used), len(duplicates), len(unknown))
    if coverage.complete and total:
        return used, coverage
    examples = []
    if coverage.missing:
        examples.append(f"first missing: {next(key for key, count in open_questions.items() if count)!r}")
    examples += [f"first duplicate: {where}" for where in duplicates[:1]]
    examples += [f"first unknown: {where}" for where in unknown[:1]]
    details = "; ".join([coverage.describe(), *examples])
    if not total:
        raise UserError("the benchmark file holds no question to score")
    if not used:
        raise UserError(f"nothing to score: {details}")
    if not partial:
        raise UserError(f"{details}. Finish or repair the run, or pass --partial to score the answered questions")
    return used, coverage


def write_json(path: str | Path, document: Any, indent: int | None = 1) -> None:
    """Writes a JSON document; the file appears complete or not at all. Folders are made.

    Raises `UserError`: the file cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path) as file:
            file.write(json.dumps(document, indent=indent, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from None
