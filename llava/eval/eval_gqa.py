"""Scores GQA answers: exact match, over all questions, by question type, and binary against open questions.

    python -m llava.eval.eval_gqa --questions testdev_balanced_questions.json --answers answers.jsonl

The answer loses its trailing periods and its capitals, as LLaVA's conversion for GQA does, and must then equal the
reference exactly, as in GQA's official evaluation. Questions not marked `isBalanced` are left out, as there. A question
is open where its structural type is "query", binary otherwise. All accuracies are percentages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import ScoreError, answers_by_id, field, read_json
from llava.eval.metrics.command import run_cli, scorer_parser
from llava.eval.metrics.scores import Scores, accuracy_of, group_accuracies, render_scores

TYPE_KINDS = ("structural", "semantic", "detailed")


def normalize_prediction(text: str) -> str:
    """The model's answer as it is compared: "Yes." → "yes". Spaces are not touched."""
    return text.rstrip(".").lower()


def read_questions(path: str | Path) -> dict[str, dict[str, Any]]:
    """The balanced questions of GQA's JSON, by question id.

    Raises:
        ScoreError: the file is missing or malformed, a question has no answer.

    """
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


def score(questions: str | Path, answers: str | Path, partial: bool = False) -> Scores:
    """Accuracy of an answers file on a GQA questions file.

    Args:
        questions: GQA's JSON, question id → {"answer", "types", "isBalanced", …}, the last two optional.
        answers: JSONL with "question_id" and "text".
        partial: score the answered questions only instead of raising when some are missing, duplicate or unknown.

    Returns:
        "accuracy", and in the groups "shape" (binary, open), "structural", "semantic" and "detailed" the accuracy of
        each type (absent where the file has no types).

    Raises:
        ScoreError: unreadable or malformed input; answers that do not cover the questions, unless `partial`.

    """
    known = read_questions(questions)
    given, coverage, empty = answers_by_id(known, answers, partial)
    hits, judged = [], []
    for question_id, answer in given.items():
        hit = normalize_prediction(answer.text) == known[question_id]["answer"]
        hits.append(hit)
        types = known[question_id].get("types") or {}
        if types.get("structural") is not None:
            judged.append(("shape", "open" if types["structural"] == "query" else "binary", hit))
        judged += [(kind, str(types[kind]), hit) for kind in TYPE_KINDS if types.get(kind) is not None]
    accuracy = accuracy_of(hits)["accuracy"]
    return Scores.of("gqa", "accuracy", {"accuracy": accuracy}, group_accuracies(judged), coverage, empty)


def render(result: Scores) -> str:
    """The result of `score` as a table for people."""
    return render_scores(result, "GQA")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = scorer_parser("Score GQA answers (exact match).", "--answers")
    parser.add_argument("--questions", required=True, help="GQA's testdev_balanced_questions.json")
    args = parser.parse_args(argv)
    return run_cli(lambda: score(args.questions, args.answers, args.partial), render, args.output)


if __name__ == "__main__":
    raise SystemExit(main())
