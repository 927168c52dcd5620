"""Scores VQAv2 answers on a split with annotations (val), as VQA's official evaluation does.

    python -m llava.eval.eval_vqav2 --annotation-file v2_mscoco_val2014_annotations.json --result-file answers.jsonl

The answer is first brought into the form in which it would be submitted (`normalize_answer`, as LLaVA does). It is
worth the mean, over the ten annotators left out in turn, of min(1, matches among the other nine / 3). Before the
comparison answer and references are normalised (`normalize_vqa`), unless all annotators gave the same answer. The test
splits have no public annotations: their answers go to the server, see llava.eval.convert_vqav2_for_submission.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.eval.metrics.answer_files import ScoreError, answers_by_id, field, read_json
from llava.eval.metrics.command import run_cli, scorer_parser
from llava.eval.metrics.scores import Scores, accuracy_of, group_accuracies, render_scores
from llava.eval.metrics.text_normalize import normalize_answer, normalize_vqa


@dataclass(frozen=True)
class Annotation:
    """The annotators' answers to one question, and its official types."""

    answers: tuple[str, ...]
    groups: tuple[tuple[str, str], ...]


def vqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """VQA's accuracy in [0, 1] of a submitted answer against the annotators' answers as they stand in the file."""
    predicted = _one_line(prediction)
    wanted = [_one_line(reference) for reference in references]
    if len(set(wanted)) > 1:
        predicted, wanted = normalize_vqa(predicted), [normalize_vqa(reference) for reference in wanted]
    agrees = [reference == predicted for reference in wanted]
    matches = sum(agrees)
    return sum(min(1.0, (matches - left_out) / 3) for left_out in agrees) / len(agrees)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def read_annotations(path: str | Path) -> dict[str, Annotation]:
    """The annotations by question id, from VQA's JSON {"annotations": [{"question_id", "answers", …}]}.

    Raises:
        ScoreError: the file is missing or malformed, a question has no answers or occurs twice.

    """
    data = read_json(path, "annotation file")
    if not isinstance(data, dict) or not isinstance(data.get("annotations"), list):
        raise ScoreError(f'{path}: expected VQA\'s object with a list under "annotations"')
    annotations: dict[str, Annotation] = {}
    for number, entry in enumerate(data["annotations"]):
        where = f"{path}: annotation {number}"
        if not isinstance(entry, dict):
            raise ScoreError(f"{where}: expected an object, found {type(entry).__name__}")
        question_id = str(field(entry, "question_id", where, (int, str)))
        answers = [field(answer, "answer", where) for answer in field(entry, "answers", where, list)]
        if not answers or question_id in annotations:
            raise ScoreError(f"{where}: question {question_id} occurs twice, or has no answers")
        kinds = (("answer type", "answer_type"), ("question type", "question_type"))
        groups = tuple((kind, entry[key]) for kind, key in kinds if isinstance(entry.get(key), str))
        annotations[question_id] = Annotation(tuple(answers), groups)
    return annotations


def score(annotation_file: str | Path, result_file: str | Path, partial: bool = False) -> Scores:
    """VQAv2's accuracy of an answers file.

    Args:
        annotation_file: VQA's annotations of the split.
        result_file: JSONL with "question_id" and "text".
        partial: score the answered questions only instead of raising when some are missing, duplicate or unknown.

    Returns:
        "accuracy"; the groups "answer type" and "question type".

    Raises:
        ScoreError: as in `read_annotations`; answers that do not cover the questions, unless `partial`.

    """
    annotations = read_annotations(annotation_file)
    given, coverage, empty = answers_by_id(annotations, result_file, partial)
    values, judged = [], []
    for question_id, answer in given.items():
        annotation = annotations[question_id]
        value = vqa_accuracy(normalize_answer(answer.text), annotation.answers)
        values.append(value)
        judged += [(kind, name, value) for kind, name in annotation.groups]
    accuracy = {"accuracy": accuracy_of(values)["accuracy"]}
    return Scores.of("vqav2", "accuracy", accuracy, group_accuracies(judged), coverage, empty)


def render(result: Scores) -> str:
    """The result of `score` as a table for people."""
    return render_scores(result, "VQAv2")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = scorer_parser("Score VQAv2 answers on a split with annotations (VQA accuracy).")
    parser.add_argument("--annotation-file", required=True, help="v2_mscoco_val2014_annotations.json")
    args = parser.parse_args(argv)
    return run_cli(lambda: score(args.annotation_file, args.result_file, args.partial), render, args.output)


if __name__ == "__main__":
    raise SystemExit(main())
