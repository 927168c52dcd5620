r"""Scores VizWiz answers on a split with annotations (val): soft accuracy against ten annotators, as TextVQA's.

    python -m llava.eval.eval_vizwiz --annotation-file Annotations/val.json --question-file llava_val.jsonl \
        --result-file answers.jsonl

The question file tells each question's image, by which the annotations are found. Answers and references are
normalised as EvalAI does. The test split has no public annotations: its answers go to the server, see
llava.eval.convert_vizwiz_for_submission.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.eval_textvqa import soft_accuracy
from llava.eval.metrics.answer_files import ScoreError, answers_by_id, field, read_json, read_jsonl
from llava.eval.metrics.command import run_cli, scorer_parser
from llava.eval.metrics.scores import Scores, accuracy_of, group_accuracies, render_scores


def read_images(question_file: str | Path) -> dict[str, str]:
    """Question id → image of a question file; a ScoreError tells a missing key or an id that occurs twice."""
    images: dict[str, str] = {}
    for where, row in read_jsonl(question_file, "question file"):
        question_id = str(field(row, "question_id", where, (str, int)))
        if question_id in images:
            raise ScoreError(f"{where}: question_id {question_id} occurs twice")
        images[question_id] = field(row, "image", where)
    return images


def read_annotations(path: str | Path) -> dict[str, dict[str, Any]]:
    """Image → {"answers": strings, "type"} of VizWiz's val.json.

    Raises:
        ScoreError: the file is missing or malformed, an image has no answers (those of the test split have none).

    """
    data = read_json(path, "annotation file")
    if not isinstance(data, list):
        raise ScoreError(f"{path}: expected VizWiz's list of annotations, found {type(data).__name__}")
    annotations = {}
    for number, entry in enumerate(data):
        where = f"{path}: entry {number}"
        if not isinstance(entry, dict) or "answers" not in entry:
            raise ScoreError(f'{where}: expected an object with "answers" (the test split has none to score with)')
        answers = [field(answer, "answer", where) for answer in field(entry, "answers", where, list)]
        if not answers:
            raise ScoreError(f'{where}: "answers" is empty')
        annotations[field(entry, "image", where)] = {"answers": answers, "type": entry.get("answer_type")}
    return annotations


def score(
    annotation_file: str | Path, question_file: str | Path, result_file: str | Path, partial: bool = False
) -> Scores:
    """VizWiz's accuracy of an answers file.

    Args:
        annotation_file: VizWiz's val.json, [{"image", "answers": [{"answer"}], "answer_type"}].
        question_file: JSONL with "question_id" and "image".
        result_file: JSONL with "question_id" and "text".
        partial: score the answered questions only instead of raising when some are missing, duplicate or unknown.

    Returns:
        "accuracy"; the group "answer type".

    Raises:
        ScoreError: unreadable or malformed input; a question whose image has no annotation; answers that do not cover
            the questions, unless `partial`.

    """
    images, annotations = read_images(question_file), read_annotations(annotation_file)
    unknown = next((image for image in images.values() if image not in annotations), None)
    if unknown is not None:
        raise ScoreError(f"{annotation_file} has no annotation of {unknown}, which {question_file} asks about")
    given, coverage, empty = answers_by_id(images, result_file, partial)
    values, judged = [], []
    for question_id, answer in given.items():
        annotation = annotations[images[question_id]]
        value = soft_accuracy(answer.text, annotation["answers"])
        values.append(value)
        if isinstance(annotation["type"], str):
            judged.append(("answer type", annotation["type"], value))
    accuracy = {"accuracy": accuracy_of(values)["accuracy"]}
    return Scores.of("vizwiz", "accuracy", accuracy, group_accuracies(judged), coverage, empty)


def render(result: Scores) -> str:
    """The result of `score` as a table for people."""
    return render_scores(result, "VizWiz")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = scorer_parser("Score VizWiz answers on a split with annotations (soft accuracy).")
    parser.add_argument("--annotation-file", required=True, help="VizWiz's Annotations/val.json")
    parser.add_argument("--question-file", required=True, help="the question JSONL that was asked")
    args = parser.parse_args(argv)
    return run_cli(
        lambda: score(args.annotation_file, args.question_file, args.result_file, args.partial), render, args.output
    )


if __name__ == "__main__":
    raise SystemExit(main())
