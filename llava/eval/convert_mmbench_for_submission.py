r"""Writes MMBench answers as the Excel file that its evaluation server takes.

    python -m llava.eval.convert_mmbench_for_submission --annotation-file mmbench_dev_20230712.tsv \
        --result-dir answers/mmbench_dev_20230712 --upload-dir answers_upload/mmbench_dev_20230712 --experiment NAME

reads RESULT_DIR/NAME.jsonl and writes UPLOAD_DIR/NAME.xlsx: the table without images, hints and categories, with a
column "prediction". Needs openpyxl.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import ScoreError, answers_by_id
from llava.eval.metrics.command import run_cli
from llava.eval.metrics.option_tables import is_nothing, read_table
from llava.files import replacing

_LEFT_OUT = frozenset({"hint", "category", "source", "image", "comment", "l2-category"})
_POSITION = 6


def convert(annotation_file: str | Path, result_file: str | Path, upload_file: str | Path) -> dict[str, Any]:
    """Write the submission; it has every row of the table, in its order.

    Args:
        annotation_file: MMBench's TSV (a test split may lack the answers).
        result_file: JSONL with "question_id" (the row's index) and "text".
        upload_file: the .xlsx to write; it appears complete or not at all.

    Returns:
        "output", the counts of `Coverage.to_dict`, "empty" answers.

    Raises:
        ScoreError: openpyxl is not installed; unreadable or malformed input; answers that do not cover the rows.

    """
    try:
        from openpyxl import Workbook
    except ImportError:
        raise ScoreError("MMBench's server takes an Excel file, which needs openpyxl: pip install openpyxl") from None
    rows = [
        {k: v for k, v in row.items() if k.lower() not in _LEFT_OUT}
        for _, row in read_table(annotation_file, ("index", "question"))
    ]
    given, coverage, empty = answers_by_id([row["index"] for row in rows], result_file)
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    columns = list(rows[0])
    columns.insert(_POSITION, "prediction")
    sheet.append(columns)
    for row in rows:
        cells = row | {"prediction": given[row["index"]].text}
        sheet.append([_cell(column, cells[column]) for column in columns])
    path = Path(upload_file)
    try:
        with replacing(path, "wb") as file:
            book.save(file)
    except OSError as error:
        raise ScoreError(f"{path} cannot be written: {error}") from None
    return {"output": str(path)} | coverage.to_dict() | {"empty": empty}


def _cell(column: str, value: str) -> str | int | None:
    if column == "index":
        return int(value)
    if column == "prediction":
        return value
    return None if is_nothing(value) else value


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write MMBench answers in the form that its server takes (Excel).")
    parser.add_argument("--annotation-file", required=True, help="MMBench's TSV, e.g. mmbench_dev_20230712.tsv")
    parser.add_argument("--result-dir", type=Path, required=True, help="folder of EXPERIMENT.jsonl, the answers")
    parser.add_argument("--upload-dir", type=Path, required=True, help="folder for EXPERIMENT.xlsx")
    parser.add_argument("--experiment", required=True, help="name of the run")
    args = parser.parse_args(argv)
    result, upload = args.result_dir / f"{args.experiment}.jsonl", args.upload_dir / f"{args.experiment}.xlsx"
    return run_cli(lambda: convert(args.annotation_file, result, upload))


if __name__ == "__main__":
    raise SystemExit(main())
