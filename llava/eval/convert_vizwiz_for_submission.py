r"""Writes VizWiz answers as the file that its evaluation server takes: [{"image", "answer"}], answers normalised.

    python -m llava.eval.convert_vizwiz_for_submission --annotation-file llava_test.jsonl \
        --result-file answers.jsonl --result-upload-file answers_upload/NAME.json

The order is the question file's; a question without an answer is an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.eval_vizwiz import read_images
from llava.eval.metrics.answer_files import answers_by_id, write_json
from llava.eval.metrics.command import run_cli
from llava.eval.metrics.text_normalize import normalize_answer


def convert(question_file: str | Path, result_file: str | Path, upload_file: str | Path) -> dict[str, Any]:
    """Write the submission; it has every question, in the order of the question file.

    Args:
        question_file: JSONL with "question_id" and "image".
        result_file: JSONL with "question_id" and "text".
        upload_file: the JSON to write.

    Returns:
        "output", the counts of `Coverage.to_dict`, "empty" answers.

    Raises:
        ScoreError: unreadable or malformed input; answers that do not cover the questions.

    """
    images = read_images(question_file)
    given, coverage, empty = answers_by_id(images, result_file)
    rows = [{"image": image, "answer": normalize_answer(given[i].text)} for i, image in images.items()]
    write_json(upload_file, rows, indent=None)
    return {"output": str(upload_file)} | coverage.to_dict() | {"empty": empty}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write VizWiz answers in the form that its server takes.")
    parser.add_argument("--annotation-file", required=True, help="the question JSONL that was asked (llava_test.jsonl)")
    parser.add_argument("--result-file", required=True, help="answers JSONL of llava.eval.model_vqa_loader")
    parser.add_argument("--result-upload-file", required=True, help="the JSON to write")
    args = parser.parse_args(argv)
    return run_cli(lambda: convert(args.annotation_file, args.result_file, args.result_upload_file))


if __name__ == "__main__":
    raise SystemExit(main())
