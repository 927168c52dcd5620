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
from llava.eval.metrics.judges import EXPECTED, JUDGES, Judge


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
    """A user's own questions as a benchmark; without references they are asked and not scored.

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
    if judge is None and references is not None:
        raise UserError(f"references without a judge: say how answers are compared with them ({', '.join(JUDGES)})")
    if judge is not None and references is None:
        raise UserError("a judge without references: name the file of the right answers")
    paths = {"questions": questions, "images": images or Path(questions).parent, "references": references}
    paths = {key: Path(value).expanduser().resolve() for key, value in paths.items() if value is not None}
    file, called = paths["questions"], name or paths["questions"].stem
    words = {"name": called, "max_new_tokens": max_new_tokens}
    fields: dict[str, Any] = words | {
        "title": called,
        "folder": str(file.parent),
        "questions": file.name,
        "images": str(paths["images"]),
        "spec": {key: str(path) for key, path in paths.items()} | {"judge": judge} | words,
        "figure": None,
    }
    fields |= dict.fromkeys(("questions_from", "images_from", "references_from"), "the path that was given")
    if references is not None:
        fields |= {"references": str(paths["references"]), "figure": "accuracy", "groups": _groups}
        fields |= {"read": _reader(judge), "judge": _checked(JUDGES.get(judge, judge))}
    if callable(judge):
        fields["spec"] = None  # a function cannot stand in a run file
    return Benchmark(**fields | more)


def _checked(judge: Judge) -> Callable[[str, Mapping[str, Any]], float]:
    def judged(text: str, reference: Mapping[str, Any]) -> float:
        value = judge(text, reference["answers"])
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"the judge gave {value!r} for the answer {text[:80]!r}; expected a number from 0 to 1")
        return float(value)

    return judged


def _reader(judge: str | Judge) -> Callable[[Path, Path], References]:
    fits, expected = EXPECTED.get(judge, (lambda answers: True, ""))

    def read(questions: Path, references: Path) -> References:
        """The references by question id; `UserError` unless every question has one line there, and no other has."""
        asked, of = read_question_ids(questions), {}
        for where, row in read_jsonl(references, "references file"):
            question_id = str(field(row, "question_id", where, (str, int)))
            if question_id in of:
                raise UserError(f"{where}: question_id {question_id} occurs twice")
            if question_id not in asked:
                raise UserError(f"{where}: question_id {question_id} is not in {questions}")
            answers = _answers(row, where)
            if not fits(answers):
                raise UserError(f"{where}: the judge {judge} needs {expected}, found {', '.join(answers)[:80]}")
            of[question_id] = {"answers": answers, "category": row.get("category")}
        missing = [question_id for question_id in asked if question_id not in of]
        if missing:
            raise UserError(f"{references} lacks {len(missing)} of {len(asked)} questions; the first is {missing[0]!r}")
        return References(of)

    return read


def _answers(row: Mapping[str, Any], where: str) -> list[str]:
    if ("answer" in row) == ("answers" in row):
        raise UserError(f'{where}: expected "answer" (text) or "answers" (a list), found {", ".join(sorted(row))}')
    answers = row["answers"] if "answers" in row else [row["answer"]]
    if not isinstance(answers, list) or not answers or not all(isinstance(one, str | int | float) for one in answers):
        raise UserError(f"{where}: an answer should be text or a number, and answers a list of at least one")
    return [str(one) for one in answers]


def _groups(reference: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    return [("category", str(reference["category"]))] if reference["category"] is not None else []


def load_benchmark(spec: str) -> Benchmark:
    """The `Benchmark` that `path/to/file.py:NAME` or `package.module:NAME` names.

    Raises `UserError`: no such file or module, or nothing (or something else) of that name in it.
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
