"""A user's own questions as a benchmark: `question_set`, and Python files that hold one (docs/your-own-data.md)."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.benchmarks.base import Benchmark, References
from llava.eval.benchmarks.files import read_question_ids
from llava.eval.metrics.answer_files import field, read_jsonl
from llava.eval.metrics.judges import JUDGES, Judge

_FEWEST_FOR_VQA = 4


def question_set(
    questions: str | Path,
    images: str | Path | None = None,
    references: str | Path | None = None,
    judge: str | Judge | None = None,
    *,
    name: str | None = None,
    max_new_tokens: int = 128,
    **more: Any,
) -> Benchmark:
    """Questions of one's own as a benchmark; without references they are asked and not scored.

    Args:
        questions: JSONL with "question_id", "text" (asked as it stands) and "image".
        images: the folder that the image paths are relative to; default: that of `questions`.
        references: JSONL with "question_id" and "answer" (text) or "answers" (a list), optionally "category", by which
            scores are grouped; one line per question.
        judge: a name of `llava.eval.metrics.judges.JUDGES`, or a function (text, list of references) → [0, 1].
        name: what the set is called in tables and paths; default: the question file's name without its ending.
        max_new_tokens: longest answer in tokens.
        more: other fields of `Benchmark`, e.g. `read` for references in another form, `aggregate`, `title`, `unit`.

    Raises:
        UserError: an unknown judge; a judge without references, or references without a judge.

    """
    if isinstance(judge, str) and judge not in JUDGES:
        raise UserError(f"judge {judge!r} is not known; known are {', '.join(JUDGES)}")
    if (judge is None) != (references is None):
        raise UserError(
            "references without a judge: say how answers are compared with them (exact, vqa, yes_no, choice, …)"
            if judge is None
            else "a judge without references: name the file of the right answers"
        )
    file = Path(questions).expanduser().resolve()
    folder = file.parent if images is None else Path(images).expanduser().resolve()
    scoring: dict[str, Any] = {"figure": None}
    if references is not None:
        right = Path(references).expanduser().resolve()
        value = JUDGES[judge] if isinstance(judge, str) else judge
        scoring = {"references": str(right), "figure": "accuracy", "groups": _groups, "read": _reader(value)}
        scoring["judge"] = lambda text, reference: value(text, reference["answers"])
    if name is None:
        name = file.stem
    given = {"questions": questions, "images": images, "references": references, "judge": judge}
    spec = {
        key: value if key == "judge" else str(Path(value).expanduser().resolve())
        for key, value in given.items()
        if value
    }
    spec |= {"name": name, "max_new_tokens": max_new_tokens}
    built = {"name": name, "title": name, "folder": str(file.parent), "questions": file.name, "images": str(folder)}
    fields = built | {"max_new_tokens": max_new_tokens, "spec": spec} | scoring
    return Benchmark(**fields | more)


def _reader(judge: Judge) -> Callable[[Path, Path], References]:
    def read(questions: Path, references: Path) -> References:
        """The references by question id; `UserError` unless every question has one line there, and no other has."""
        asked, of = read_question_ids(questions), {}
        for where, row in read_jsonl(references, "references file"):
            question_id = str(field(row, "question_id", where, (str, int)))
            if question_id in of:
                raise UserError(f"{where}: question_id {question_id} occurs twice")
            if question_id not in asked:
                raise UserError(f"{where}: question_id {question_id} is not in {questions}")
            of[question_id] = {"answers": _answers(row, where), "category": row.get("category")}
            if judge is JUDGES["vqa"] and len(of[question_id]["answers"]) < _FEWEST_FOR_VQA:
                raise UserError(
                    f"{where}: the judge vqa compares with several annotators' answers (VQA has ten), at least "
                    f"{_FEWEST_FOR_VQA}, found {len(of[question_id]['answers'])}; with fewer take exact"
                )
        missing = [question_id for question_id in asked if question_id not in of]
        if missing:
            raise UserError(f"{references} lacks {len(missing)} of {len(asked)} questions; the first is {missing[0]!r}")
        return References(of)

    return read


def _answers(row: Mapping[str, Any], where: str) -> list[str]:
    if ("answer" in row) == ("answers" in row):
        raise UserError(
            f'{where}: expected either "answer" (text) or "answers" (a list), found {", ".join(sorted(row))}'
        )
    answers = row["answers"] if "answers" in row else [row["answer"]]
    if not isinstance(answers, list) or not answers or not all(isinstance(one, str | int | float) for one in answers):
        raise UserError(f"{where}: an answer should be text or a number, and answers a list of at least one")
    return [str(one) for one in answers]


def _groups(reference: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    return [("category", str(reference["category"]))] if reference["category"] is not None else []


def load_benchmark(spec: str) -> Benchmark:
    """The `Benchmark` that `path/to/file.py:NAME` or `package.module:NAME` names.

    Raises:
        UserError: no such file or module, or nothing (or something else) of that name in it.

    """
    place, _, name = spec.rpartition(":")
    try:
        if place.endswith(".py"):
            path = Path(place).expanduser().resolve()
            if not path.is_file():
                raise UserError(f"benchmark {spec}: {path} is not a file")
            found = importlib.util.spec_from_file_location(path.stem, path)
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
            spec = f"{path}:{name}"
        else:
            module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise UserError(f"benchmark {spec} cannot be imported: {error}") from None
    benchmark = getattr(module, name, None)
    if not isinstance(benchmark, Benchmark):
        names = ", ".join(key for key, value in vars(module).items() if isinstance(value, Benchmark)) or "none"
        raise UserError(f"{place} holds no benchmark {name!r} (llava.eval.benchmarks.Benchmark); found {names}")
    return replace(benchmark, spec=spec)
