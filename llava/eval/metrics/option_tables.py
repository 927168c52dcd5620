"""The tables of multiple-choice questions that MMBench and MMStar are published as: TSV, images as base64 text."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from llava.eval.metrics.answer_files import ScoreError

LETTERS = "ABCD"
# The cells that pandas, with which LLaVA reads these tables, takes for "nothing here", and those that LLaVA adds.
_NOTHING = frozenset(
    ("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL")
    + ("NaN", "None", "n/a", "nan", "null")
)
_MAX_FIELD = 1 << 28
_field_limit = threading.Lock()


def is_nothing(value: str | None) -> bool:
    """Whether a cell is empty: missing, blank, or one of the words for it ("nan", "None", "NA", …)."""
    return value is None or value == "" or value in _NOTHING or value.lower() in ("nan", "none")


def choices_of(row: Mapping[str, str | None]) -> dict[str, str]:
    """The options of a row by letter, up to the first that is empty."""
    choices: dict[str, str] = {}
    for letter in LETTERS:
        value = row.get(letter)
        if value is None or is_nothing(value):
            break
        choices[letter] = value
    return choices


def read_table(path: str | Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a TSV file one by one, as ("file:line", column → text).

    Args:
        path: the file; the first line names the columns.
        needed: columns that must be there.

    Raises:
        ScoreError: the file is missing or unreadable, a needed column is missing, or a row has another number of cells.

    """
    try:
        with open(path, encoding="utf-8", newline="") as file, _long_fields():
            rows = csv.DictReader(file, delimiter="\t")
            missing = [column for column in needed if column not in (rows.fieldnames or ())]
            if missing:
                found = ", ".join(rows.fieldnames or ()) or "none"
                raise ScoreError(f"{path}: column {missing[0]!r} is missing; found {found[:200]}")
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if None in row or None in row.values():
                    raise ScoreError(f"{where}: the row has another number of cells than the header")
                yield where, row
    except FileNotFoundError:
        raise ScoreError(f"table not found: {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScoreError(f"table {path} cannot be read: {error}") from None


class _long_fields:
    """Lets the csv module read cells of megabytes while a table is open; its limit is the process's."""

    def __enter__(self) -> None:
        _field_limit.acquire()
        self.before = csv.field_size_limit(_MAX_FIELD)

    def __exit__(self, *_: object) -> None:
        csv.field_size_limit(self.before)
        _field_limit.release()
