"""Scores GQA answers: exact match, over all questions, by question type, and binary against open questions.

    python -m llava.eval.eval_gqa --questions testdev_balanced_questions.json --answers answers.jsonl

The answer loses its trailing periods and its capitals, as LLaVA's conversion for GQA does, and must then equal the
reference exactly, as in GQA's official evaluation. Questions not marked `isBalanced` are left out, as there. A question
is open where its structural type is "query", binary otherwise. All accuracies are percentages.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.answer_files import ScoreError, field, format_table, match, read_answers, read_json, run_cli

TYPE_KINDS = ("structural", "semantic", "detailed")


def normalize_prediction(text: str) -> str:
    """The model's answer as it is compared: "Yes." → "yes". Spaces are not touched."""
    return text.rstrip(".").lower()


def _read_questions(path: str | Path) -> dict[str, dict[str, Any]]:
    data = read_json(path, "questions file")
    if not isinstance(data, dict):
        raise ScoreError(f"{path}: expected GQA's object of question id → question, found {type(data).__name__}")
    questions = {}
    for question_id, question in data.items():
        where = f"{path}: question {question_id}"
        if not isinstance(question, dict):
            raise ScoreError(f"{where}: expected an object, found {type(question).__name__}")
        field(question, "answer", where)
        if question.get("types") is not None:
            field(question, "types", where, dict)
        if question.get("isBalanced", True):
            questions[question_id] = question
    return questions


def _summary(hits: list[bool]) -> dict[str, Any]:
    return {"accuracy": 100 * sum(hits) / len(hits), "count": len(hits)}


def score(questions: str | Path, answers: str | Path, partial: bool = False) -> dict[str, Any]:
    """Accuracy of an answers file on a GQA questions file.

    Args:
        questions: GQA's JSON, question id → {"answer", "types", "isBalanced", …}, the last two optional.
        answers: JSONL with "question_id" and "text".
        partial: score the answered questions only instead of raising when some are missing, duplicate or unknown.

    Returns:
        "accuracy" (percent); "binary", "open" and, under "types", each structural, semantic and detailed type, as
        {"accuracy", "count"} (absent where the file has no types); and the counts of `Coverage.to_dict`.

    Raises:
        ScoreError: unreadable or malformed input; answers that do not cover the questions, unless `partial`.

    """
    known = _read_questions(questions)
    given = read_answers(answers)
    used, coverage = match(known, [(answer.question_id, answer.where) for answer in given], partial)
    groups: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for index in used:
        question = known[given[index].question_id]
        hit = normalize_prediction(given[index].text) == question["answer"]
        groups["all", "all"].append(hit)
        types = question.get("types") or {}
        for kind in TYPE_KINDS:
            if types.get(kind) is not None:
                groups[kind, str(types[kind])].append(hit)
        if types.get("structural") is not None:
            groups["shape", "open" if types["structural"] == "query" else "binary"].append(hit)
    result: dict[str, Any] = {"benchmark": "gqa", "accuracy": _summary(groups["all", "all"])["accuracy"]}
    for shape in ("binary", "open"):
        if ("shape", shape) in groups:
            result[shape] = _summary(groups["shape", shape])
    types_found = {
        kind: {name: _summary(hits) for (k, name), hits in sorted(groups.items()) if k == kind} for kind in TYPE_KINDS
    }
    result["types"] = {kind: by_name for kind, by_name in types_found.items() if by_name}
    return result | coverage.to_dict()


def render(result: dict[str, Any]) -> str:
    """The result of `score` as a table for people."""
    rows: list[tuple[str, int, float]] = [("GQA accuracy", result["answered"], result["accuracy"])]
    for shape in ("binary", "open"):
        if shape in result:
            rows.append((shape, result[shape]["count"], result[shape]["accuracy"]))
    for kind, by_name in result["types"].items():
        rows += [(f"{kind}: {name}", entry["count"], entry["accuracy"]) for name, entry in by_name.items()]
    return format_table(("", "questions", "%"), rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Score GQA answers (exact match).")
    parser.add_argument("--questions", required=True, help="GQA's testdev_balanced_questions.json")
    parser.add_argument("--answers", required=True, help="answers JSONL of llava.eval.model_vqa_loader")
    parser.add_argument("--partial", action="store_true", help="score the answered questions only, and say so")
    args = parser.parse_args(argv)
    return run_cli(lambda: score(args.questions, args.answers, args.partial), render)


if __name__ == "__main__":
    raise SystemExit(main())
