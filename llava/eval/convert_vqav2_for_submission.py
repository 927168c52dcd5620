r"""Writes VQAv2 answers as the file that its evaluation server takes: [{"question_id", "answer"}], answers normalised.

    python -m llava.eval.convert_vqav2_for_submission --dir playground/data/eval/vqav2 \
        --split llava_vqav2_mscoco_test-dev2015 --ckpt NAME

reads answers/SPLIT/NAME/merge.jsonl and writes answers_upload/SPLIT/NAME.json. The server wants a line for every
question of test2015; those outside the split that was asked (test-dev2015) get an empty answer, as LLaVA does, and
their number is told. A question of the split without an answer is an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import ScoreError, answers_by_id, field, read_jsonl, write_json
from llava.eval.metrics.command import run_cli
from llava.eval.metrics.text_normalize import normalize_answer

FULL_SPLIT = "llava_vqav2_mscoco_test2015"


def _read_ids(question_file: Path) -> dict[str, int | str]:
    ids: dict[str, int | str] = {}
    for where, row in read_jsonl(question_file, "question file"):
        question_id = field(row, "question_id", where, (int, str))
        if ids.setdefault(str(question_id), question_id) is not question_id:
            raise ScoreError(f"{where}: question_id {question_id} occurs twice")
    return ids


def convert(
    question_file: str | Path, all_questions: str | Path, result_file: str | Path, upload_file: str | Path
) -> dict[str, Any]:
    """Write the submission, in the order of `all_questions`.

    Args:
        question_file: JSONL of the split that was asked ("question_id").
        all_questions: JSONL of every question that the server expects.
        result_file: JSONL with "question_id" and "text".
        upload_file: the JSON to write.

    Returns:
        "output", the counts of `Coverage.to_dict`, "empty" answers and "filled": questions outside the split.

    Raises:
        ScoreError: unreadable or malformed input; a question of the split that is not among all; answers that do not
            cover the split.

    """
    split, everything = _read_ids(Path(question_file)), _read_ids(Path(all_questions))
    stray = next((question_id for question_id in split if question_id not in everything), None)
    if stray is not None:
        raise ScoreError(f"question {stray} of {question_file} is not in {all_questions}")
    given, coverage, empty = answers_by_id(split, result_file)
    rows = [
        {"question_id": original, "answer": normalize_answer(given[key].text) if key in given else ""}
        for key, original in everything.items()
    ]
    write_json(upload_file, rows, indent=None)
    counts = {"empty": empty, "filled": len(everything) - len(split)}
    return {"output": str(upload_file)} | coverage.to_dict() | counts


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write VQAv2 answers in the form that its server takes.")
    parser.add_argument("--dir", type=Path, default=Path("playground/data/eval/vqav2"), help="default %(default)s")
    parser.add_argument("--ckpt", required=True, help="name of the run: answers/SPLIT/CKPT/merge.jsonl")
    parser.add_argument(
        "--split", required=True, help="question file without .jsonl, e.g. llava_vqav2_mscoco_test-dev2015"
    )
    args = parser.parse_args(argv)
    return run_cli(
        lambda: convert(
            args.dir / f"{args.split}.jsonl",
            args.dir / f"{FULL_SPLIT}.jsonl",
            args.dir / "answers" / args.split / args.ckpt / "merge.jsonl",
            args.dir / "answers_upload" / args.split / f"{args.ckpt}.json",
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
