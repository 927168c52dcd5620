r"""Scores POPE answers: accuracy, precision, recall, F1 and yes-ratio of each split, and their means over the splits.

    python -m llava.eval.eval_pope --annotation-dir coco --question-file llava_pope_test.jsonl \
        --result-file answers.jsonl

An answer is read by POPE's rule: of its first sentence, without commas, "no" where one of the words is "No", "no" or
"not", else "yes"; so an answer that says neither counts as "yes". "yes" is the positive class. All figures are percent.
The mean F1 over the splits is what LLaVA-1.5 and its followers quote as POPE (85.9 for LLaVA-1.5-7B).

Labels are found by image and question, within a split. LLaVA's question file has 2910 random questions and goes with
the annotations of POPE's commit e3e3926; today's coco_pope_random.json asks 3000 others and is refused with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import ScoreError, answers_by_id, field, format_table, read_jsonl
from llava.eval.metrics.command import run_cli, scorer_parser
from llava.eval.metrics.scores import Scores
from llava.eval.runner.prompts import SHORT

SPLITS = ("adversarial", "popular", "random")
METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")
_NEGATIVE_WORDS = frozenset({"No", "no", "not"})

Label = tuple[str, bool]
"""(split, whether the right answer is yes)."""


def parse_yes_no(text: str) -> bool:
    """Whether POPE reads the answer as yes: "Yes." → True, "There is not" → False, "perhaps" → True."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return _NEGATIVE_WORDS.isdisjoint(words)


def _same_question(image: str, text: str) -> tuple[str, str]:
    # POPE's first release, LLaVA's, spells "imange" in the questions with "an".
    return image, text.replace("imange", "image")


def read_labels(question_file: str | Path, annotation_dir: str | Path) -> dict[str, Label]:
    """Question id → (split, label) of every question, the label looked up in coco_pope_<split>.json.

    Raises:
        ScoreError: a file is missing or malformed, a question has no label, or a label no question (the files are of
            different releases), or an id or a question occurs twice.

    """
    labels: dict[str, Label] = {}
    open_labels: dict[str, dict[tuple[str, str], bool]] = {}
    for where, row in read_jsonl(question_file, "question file"):
        split = field(row, "category", where)
        if split not in SPLITS:
            raise ScoreError(f'{where}: "category" should be one of {", ".join(SPLITS)}, found {split!r}')
        path = Path(annotation_dir) / f"coco_pope_{split}.json"
        if split not in open_labels:
            open_labels[split] = _read_annotations(path)
        text = field(row, "text", where).removesuffix(f"\n{SHORT}")
        label = open_labels[split].pop(_same_question(field(row, "image", where), text), None)
        if label is None:
            raise ScoreError(f"{where}: {path} has no (or no second) {text!r} of {row['image']}; {_RELEASES}")
        question_id = str(field(row, "question_id", where, (str, int)))
        if question_id in labels:
            raise ScoreError(f"{where}: question_id {question_id} occurs twice")
        labels[question_id] = split, label
    for split, left in open_labels.items():
        if left:
            raise ScoreError(f"{len(left)} {split} labels have no question in {question_file}; {_RELEASES}")
    return labels


_RELEASES = "question file and annotations must be of one release (LLaVA's: POPE's commit e3e3926, 2910 random)"


def _read_annotations(path: Path) -> dict[tuple[str, str], bool]:
    labels = {}
    for where, row in read_jsonl(path, "annotation file"):
        label = field(row, "label", where)
        if label not in ("yes", "no"):
            raise ScoreError(f'{where}: "label" should be yes or no, found {label!r}')
        labels[_same_question(field(row, "image", where), field(row, "text", where))] = label == "yes"
    return labels


def metrics(judged: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    """`METRICS` in percent and "count" of (predicted yes, is yes) pairs; 0 where a ratio has no denominator."""

    def percent(part: float, whole: float) -> float:
        return 100 * part / whole if whole else 0.0

    true_yes = sum(predicted and actual for predicted, actual in judged)
    said_yes = sum(predicted for predicted, _ in judged)
    are_yes = sum(actual for _, actual in judged)
    right = sum(predicted == actual for predicted, actual in judged)
    return {
        "accuracy": percent(right, len(judged)),
        "precision": percent(true_yes, said_yes),
        "recall": percent(true_yes, are_yes),
        "f1": percent(2 * true_yes, said_yes + are_yes),  # = 2PR / (P + R)
        "yes_ratio": percent(said_yes, len(judged)),
        "count": len(judged),
    }


def score(
    question_file: str | Path, annotation_dir: str | Path, result_file: str | Path, partial: bool = False
) -> Scores:
    """POPE's scores of an answers file.

    Args:
        question_file: LLaVA's llava_pope_test.jsonl ("category" names the split).
        annotation_dir: POPE's output/coco: coco_pope_<split>.json, JSONL with "image", "text", "label".
        result_file: JSONL with "question_id" and "text".
        partial: score the answered questions only instead of raising when some are missing, duplicate or unknown.

    Returns:
        `METRICS`, each the mean over the splits (all counting alike); the group "split" has those of each split.

    Raises:
        ScoreError: as in `read_labels`; answers that do not cover the questions, unless `partial`.

    """
    labels = read_labels(question_file, annotation_dir)
    given, coverage, empty = answers_by_id(labels, result_file, partial)
    judged: dict[str, list[tuple[bool, bool]]] = {split: [] for split in SPLITS}
    for question_id, answer in given.items():
        split, label = labels[question_id]
        judged[split].append((parse_yes_no(answer.text), label))
    splits = {split: metrics(pairs) for split, pairs in judged.items() if pairs}
    means = {name: sum(entry[name] for entry in splits.values()) / len(splits) for name in METRICS}
    return Scores.of("pope", "f1", means, {"split": splits}, coverage, empty)


def render(result: Scores) -> str:
    """The result of `score` as a table for people."""
    rows = [(split, entry["count"], *(entry[m] for m in METRICS)) for split, entry in result["groups"]["split"].items()]
    rows.append(("mean of splits", result["answered"], *(result[metric] for metric in METRICS)))
    return format_table(("POPE", "questions", "accuracy", "precision", "recall", "F1", "yes ratio"), rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = scorer_parser("Score POPE answers (accuracy, precision, recall, F1, yes-ratio).")
    parser.add_argument("--annotation-dir", required=True, help="folder of coco_pope_{adversarial,popular,random}.json")
    parser.add_argument("--question-file", required=True, help="llava_pope_test.jsonl")
    args = parser.parse_args(argv)
    return run_cli(
        lambda: score(args.question_file, args.annotation_dir, args.result_file, args.partial), render, args.output
    )


if __name__ == "__main__":
    raise SystemExit(main())
