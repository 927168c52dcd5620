"""Scores ScienceQA answers by LLaVA's reading of the option letter: all questions, and those with an image (IMG).

    python -m llava.eval.eval_science_qa --base-dir scienceqa --result-file answers.jsonl [--img-only]

The letter of an answer is the answer itself ("B"), its first character where ". " follows ("B. Vermont"), or X in the
one "The answer is X" that it holds; any other answer, and a letter beyond the question's options, is wrong and counted
as "unreadable". What the papers quote is the accuracy on the questions with an image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import ScoreError, answers_by_id, field, read_json, write_json
from llava.eval.metrics.command import run_cli, scorer_parser
from llava.eval.metrics.scores import Scores, accuracy_of, group_accuracies, render_scores
from llava.eval.runner.prompts import LETTERS

_SENTENCE = re.compile(r"The answer is ([A-Z]).")  # one more character must follow, as in LLaVA's pattern


def parse_letter(text: str, choices: int) -> int | None:
    """The option that LLaVA reads in an answer, counted from 0; None where it reads none of the `choices` options."""
    if text in tuple(LETTERS) or (text[:1] in tuple(LETTERS) and text[1:3] == ". "):
        letter = text[0]
    else:
        found = _SENTENCE.findall(text)
        letter = found[0] if len(found) == 1 else ""
    index = LETTERS.find(letter) if letter else -1
    return index if 0 <= index < choices else None


def read_problems(base_dir: str | Path, split: str = "test", img_only: bool = False) -> dict[str, dict[str, Any]]:
    """The problems of a split, by id, in its order; with `img_only` those that have an image.

    Raises:
        ScoreError: pid_splits.json or problems.json in `base_dir` is missing or malformed.

    """
    base = Path(base_dir)
    splits, problems = read_json(base / "pid_splits.json", "split file"), read_json(base / "problems.json", "problems")
    if not isinstance(splits, dict) or not isinstance(splits.get(split), list) or not isinstance(problems, dict):
        raise ScoreError(f"{base}: expected pid_splits.json with a list under {split!r} and problems.json by id")
    chosen = {}
    for number in splits[split]:
        where = f"{base / 'problems.json'}: problem {number}"
        problem = problems.get(str(number))
        if not isinstance(problem, dict):
            raise ScoreError(f"{where} of the split {split!r} is not there")
        choices, answer = field(problem, "choices", where, list), field(problem, "answer", where, int)
        if not 0 <= answer < len(choices) <= len(LETTERS):
            raise ScoreError(f"{where}: answer {answer} of {len(choices)} options (at most {len(LETTERS)})")
        if problem.get("image") is not None or not img_only:
            chosen[str(number)] = problem
    return chosen


def score(
    base_dir: str | Path, result_file: str | Path, partial: bool = False, split: str = "test", img_only: bool = False
) -> Scores:
    """ScienceQA's accuracies of an answers file.

    Args:
        base_dir: folder of pid_splits.json and problems.json.
        result_file: JSONL with "question_id" (the problem's id) and "text".
        partial: score the answered questions only instead of raising when some are missing, duplicate or unknown.
        split: the split that was asked.
        img_only: only its questions with an image were asked.

    Returns:
        "accuracy" of all asked questions, "img_accuracy" of those with an image (None without one), "unreadable"
        answers; the groups "subject", "grades" (G1-6, G7-12) and "context" (image, text only).

    Raises:
        ScoreError: as in `read_problems`; answers that do not cover the questions, unless `partial`.

    """
    problems = read_problems(base_dir, split, img_only)
    given, coverage, empty = answers_by_id(problems, result_file, partial)
    hits, with_image, judged, unreadable = [], [], [], 0
    for question_id, answer in given.items():
        problem = problems[question_id]
        predicted = parse_letter(answer.text, len(problem["choices"]))
        unreadable += predicted is None
        hit = predicted == problem["answer"]
        hits.append(hit)
        if problem.get("image") is not None:
            with_image.append(hit)
        judged += [(kind, name, hit) for kind, name in _groups_of(problem)]
    values = {
        "accuracy": accuracy_of(hits)["accuracy"],
        "img_accuracy": accuracy_of(with_image)["accuracy"] if with_image else None,
        "unreadable": unreadable,
    }
    figure = "img_accuracy" if with_image else "accuracy"
    return Scores.of("scienceqa", figure, values, group_accuracies(judged), coverage, empty)


def _groups_of(problem: dict[str, Any]) -> list[tuple[str, str]]:
    groups = [("context", "text only" if problem.get("image") is None else "image")]
    if isinstance(problem.get("subject"), str):
        groups.append(("subject", problem["subject"]))
    grade = str(problem.get("grade", "")).removeprefix("grade")
    if grade.isdigit():
        groups.append(("grades", "G1-6" if int(grade) <= 6 else "G7-12"))
    return groups


def render(result: Scores) -> str:
    """The result of `score` as a table for people."""
    return render_scores(result, "ScienceQA") + f"\n{result['unreadable']} answers without a readable option letter"


def write_llava_files(
    base_dir: str | Path, result_file: str | Path, split: str, output_file: str | None, output_result: str | None
) -> None:
    """LLaVA's two files: every question right or wrong with its reading, and accuracy with predictions by id.

    For the answered questions of the split. Raises ScoreError as `score` does with `partial`.
    """
    problems = read_problems(base_dir, split)
    given, _, _ = answers_by_id(problems, result_file, partial=True)
    analyses: dict[str, list] = {"correct": [], "incorrect": []}
    indices = {}
    for question_id, answer in given.items():
        problem = problems[question_id]
        index = parse_letter(answer.text, len(problem["choices"]))
        indices[question_id] = -1 if index is None else index
        analyses["correct" if index == problem["answer"] else "incorrect"].append(
            {
                "question_id": question_id,
                "parsed_ans": "FAILED" if index is None else LETTERS[index],
                "ground_truth": LETTERS[problem["answer"]],
                "question": answer.prompt,
                "pred": answer.text,
                "is_multimodal": problem.get("image") is not None,
            }
        )
    if output_file is not None:
        write_json(output_file, analyses)
    if output_result is not None:
        correct, count = len(analyses["correct"]), len(given)
        outputs = {question_id: answer.text for question_id, answer in given.items()}
        summary = {"acc": 100 * correct / count, "correct": correct, "count": count}
        write_json(output_result, summary | {"results": indices, "outputs": outputs})


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = scorer_parser("Score ScienceQA answers (option letters, LLaVA's reading).")
    parser.add_argument("--base-dir", required=True, help="folder of pid_splits.json and problems.json")
    parser.add_argument("--output-file", help="also write LLaVA's analysis of every answer to this JSON file")
    parser.add_argument("--output-result", help="also write LLaVA's summary with all readings to this JSON file")
    parser.add_argument("--split", default="test", help="the split that was asked (default test)")
    parser.add_argument("--img-only", action="store_true", help="only the questions with an image were asked")
    args = parser.parse_args(argv)

    def compute() -> Scores:
        scores = score(args.base_dir, args.result_file, args.partial, args.split, args.img_only)
        if args.output_file or args.output_result:
            write_llava_files(args.base_dir, args.result_file, args.split, args.output_file, args.output_result)
        return scores

    return run_cli(compute, render, args.output)


if __name__ == "__main__":
    raise SystemExit(main())
