"""Writes MM-Vet answers as the file that its grader takes: {"v1_0": answer, "v1_1": …}.

    python -m llava.eval.convert_mmvet_for_eval --questions llava-mm-vet.jsonl --src answers.jsonl --dst NAME.json

MM-Vet is graded by a language model outside of this project (MM-Vet's notebook or mm-vet_evaluator.py). Without
--questions the answers are taken as they are; with it a missing, doubled or unknown one is an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import answers_by_id, field, read_answers, read_jsonl, write_json
from llava.eval.metrics.command import run_cli


def convert(
    result_file: str | Path, upload_file: str | Path, question_file: str | Path | None = None
) -> dict[str, Any]:
    """Write the grader's file.

    Args:
        result_file: JSONL with "question_id" (a number) and "text".
        upload_file: the JSON to write.
        question_file: JSONL of the questions that were asked, whose order is kept.

    Returns:
        "output", the counts of `Coverage.to_dict`, "empty" answers.

    Raises:
        ScoreError: unreadable or malformed input; answers that do not cover the questions.

    """
    if question_file is None:
        ids = list(dict.fromkeys(answer.question_id for answer in read_answers(result_file)))
    else:
        rows = read_jsonl(question_file, "question file")
        ids = [str(field(row, "question_id", where, (int, str))) for where, row in rows]
    given, coverage, empty = answers_by_id(ids, result_file)
    write_json(upload_file, {f"v1_{question_id}": given[question_id].text for question_id in ids}, indent=2)
    return {"output": str(upload_file)} | coverage.to_dict() | {"empty": empty}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write MM-Vet answers in the form that its grader takes.")
    parser.add_argument("--src", required=True, help="answers JSONL of llava.eval.model_vqa_loader")
    parser.add_argument("--dst", required=True, help="the JSON to write")
    parser.add_argument("--questions", help="the question JSONL that was asked: the answers must cover it")
    args = parser.parse_args(argv)
    return run_cli(lambda: convert(args.src, args.dst, args.questions))


if __name__ == "__main__":
    raise SystemExit(main())
