"""Scores TextVQA answers: M4C soft accuracy against ten annotators, with the official answer normalisation.

    python -m llava.eval.eval_textvqa --annotation-file TextVQA_0.5.1_val.json --result-file answers.jsonl

An answer is worth the mean, over the ten annotators left out in turn, of min(1, matches among the other nine / 3).
Questions are found as LLaVA does: by image id and the question text inside the prompt, lower-cased (in LLaVA's question
file, `question_id` is the image id). The accuracy is a percentage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llava.eval.metrics.answer_files import (
    Answer,
    ScoreError,
    count_empty,
    field,
    match,
    read_answers,
    read_json,
)
from llava.eval.metrics.command import run_cli, scorer_parser
from llava.eval.metrics.scores import Scores, render_scores
from llava.eval.metrics.text_normalize import normalize_answer

ANNOTATORS = 10
_OCR_FIRST = re.compile(r"Question: (.*?) Short answer:", re.DOTALL)


def soft_accuracy(prediction: str, references: Sequence[str]) -> float:
    """M4C accuracy in [0, 1] of one answer against the annotators' answers, all of them normalised here."""
    wanted = normalize_answer(prediction)
    agrees = [normalize_answer(reference) == wanted for reference in references]
    matches = sum(agrees)
    return sum(min(1.0, (matches - left_out) / 3) for left_out in agrees) / len(agrees)


def question_of_prompt(prompt: str) -> str:
    """The question inside a LLaVA TextVQA prompt, lower-cased.

    The prompt shapes: "OCR tokens: … Question: … Short answer:"; three lines, one of them "Reference OCR token: …"
    before or after the question; two lines, the question first.

    Raises:
        ScoreError: the prompt has none of these shapes.

    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = _OCR_FIRST.search(prompt)
        if found is not None:
            return found.group(1).lower()
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        return lines[1 if prompt.startswith("Reference OCR token:") else 0].lower()
    elif len(lines) == 2:
        return lines[0].lower()
    raise ScoreError(
        f"the prompt {prompt[:80]!r} has none of LLaVA's TextVQA shapes: question and instruction on two lines, "
        'these with a "Reference OCR token: " line, or "OCR tokens: … Question: … Short answer:"'
    )


def read_annotations(path: str | Path) -> tuple[list[tuple[str, str]], dict[tuple[str, str], list[str]], dict]:
    """(key of every question, key → reference answers, (question id, question) → key); key = (image id, question).

    Raises:
        ScoreError: the file is missing or malformed, a question has not ten answers.

    """
    data = read_json(path, "annotation file")
    if not isinstance(data, dict) or not isinstance(data.get("data"), list):
        raise ScoreError(f'{path}: expected TextVQA\'s object with a list under "data"')
    keys, references, aliases = [], {}, {}
    for number, entry in enumerate(data["data"]):
        where = f"{path}: entry {number}"
        if not isinstance(entry, dict):
            raise ScoreError(f"{where}: expected an object, found {type(entry).__name__}")
        question = field(entry, "question", where).lower()
        key = (str(field(entry, "image_id", where, (str, int))), question)
        answers = field(entry, "answers", where, list)
        if len(answers) != ANNOTATORS or not all(isinstance(answer, str) for answer in answers):
            raise ScoreError(f'{where}: "answers" should hold {ANNOTATORS} strings, found {len(answers)} entries')
        keys.append(key)
        references[key] = answers  # a question asked twice of one image: the last entry counts, as in LLaVA
        if "question_id" in entry:
            aliases[str(entry["question_id"]), question] = key
    return keys, references, aliases


def key_of(answer: Answer, references: dict, aliases: dict) -> tuple[str, str]:
    """The key of an answer's question, found through its prompt; `references` and `aliases` of `read_annotations`.

    Raises:
        ScoreError: the answer has no prompt, or one that is in none of LLaVA's TextVQA shapes.

    """
    if answer.prompt is None:
        raise ScoreError(f'{answer.where}: key "prompt" is missing; the question is found through it')
    try:
        key = (answer.question_id, question_of_prompt(answer.prompt))
    except ScoreError as error:
        raise ScoreError(f"{answer.where}: {error}") from None
    return key if key in references else aliases.get(key, key)


def score(annotation_file: str | Path, result_file: str | Path, partial: bool = False) -> Scores:
    """Soft accuracy of an answers file on a TextVQA annotation file.

    Args:
        annotation_file: TextVQA's JSON, {"data": [{"image_id", "question", "answers": ten strings, …}]}.
        result_file: JSONL with "question_id" (image id, or TextVQA's question id), "prompt" and "text".
        partial: score the answered questions only instead of raising when some are missing, duplicate or unknown.

    Returns:
        "accuracy"; no groups.

    Raises:
        ScoreError: unreadable or malformed input; answers that do not cover the questions, unless `partial`.

    """
    keys, references, aliases = read_annotations(annotation_file)
    answers = read_answers(result_file)
    given = [(key_of(answer, references, aliases), answer.where) for answer in answers]
    used, coverage = match(keys, given, partial)
    total = sum(soft_accuracy(answers[index].text, references[given[index][0]]) for index in used)
    values = {"accuracy": 100 * total / len(used)}
    return Scores.of("textvqa", "accuracy", values, {}, coverage, count_empty(answers[index] for index in used))


def render(result: Scores) -> str:
    """The result of `score` as a table for people."""
    return render_scores(result, "TextVQA")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = scorer_parser("Score TextVQA answers (M4C soft accuracy).")
    parser.add_argument("--annotation-file", required=True, help="TextVQA_0.5.1_val.json")
    args = parser.parse_args(argv)
    return run_cli(lambda: score(args.annotation_file, args.result_file, args.partial), render, args.output)


if __name__ == "__main__":
    raise SystemExit(main())
