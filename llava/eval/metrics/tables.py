"""The tables of multiple-choice questions that MMBench and MMStar are published as: TSV, images as base64 text."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from llava.cli import UserError

LETTERS = "ABCD"
# What pandas, with which LLaVA reads these tables, takes for an empty cell, and what LLaVA adds.
_EMPTY = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "n/a")
    + ("-NaN", "-nan", "null")
)
_MAX_FIELD = 1 << 28


def is_empty(value: str | None) -> bool:
    """Whether a cell is empty: missing, blank, or one of the words for it ("nan", "None", "NA", …)."""
    return value is None or value in _EMPTY or value.lower() in ("nan", "none")


def choices_of(row: Mapping[str, str | None]) -> dict[str, str]:
    """The options of a row by letter, up to the first that is empty."""
    choices: dict[str, str] = {}
    for letter in LETTERS:
        value = row.get(letter)
        if value is None or is_empty(value):
            break
        choices[letter] = value
    return choices


def read_table(path: str | Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a TSV file one by one, as ("file:line", column → text).

    Args:
        path: the file; the first line names the columns.
        needed: columns that must be there.

    Raises:
        UserError: the file is missing or unreadable, a needed column is missing, or a row has another number of cells.

    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t")
            missing = [column for column in needed if column not in (rows.fieldnames or ())]
            if missing:
                found = ", ".join(rows.fieldnames or ()) or "none"
                raise UserError(f"{path}: column {missing[0]!r} is missing; found {found[:200]}")
            for row in _whole_rows(rows):
                where = f"{path}:{rows.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{where}: the row has another number of cells than the header")
                yield where, row
    except FileNotFoundError:
        raise UserError(f"table not found: {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"table {path} cannot be read: {error}") from None


def _whole_rows(rows: csv.DictReader) -> Iterator[dict[str, str]]:
    """The rows, also with cells of megabytes; the csv module's limit is raised only while it reads."""
    while True:
        before = csv.field_size_limit(_MAX_FIELD)
        try:
            row = next(rows, None)
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        yield row
