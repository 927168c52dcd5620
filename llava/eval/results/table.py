"""One table for all commands: rows and columns, written to the terminal, as Markdown, or as CSV.

    flops = Column("flops", "FLOPs", count_text, share="flops_share")
    table = Table(["run", flops, Column("accuracy", form=".1f")])
    table.add(run="paper", flops=505e6, flops_share=0.587, accuracy=96.0)
    table.print("gqa_mini")

prints

    gqa_mini
    run          FLOPs  accuracy
    paper  505M (-41%)      96.0
"""

from __future__ import annotations

import csv
import io
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from llava.eval.results.formats import change_text

WIDTH = 100
"""Characters per line in files and pipes; a terminal has its own width."""
MISSING = "–"
_GAP = 2
_NAME_WIDTH = 36  # of a column of text, where the table is too wide


@dataclass(frozen=True)
class Column:
    """One column: the key of the value in a row, and its format.

    key: names the value in the row and in CSV; heading: default the key
    form: a format spec such as ".1f", or value → text; texts are shown as they are, None and missing values as "–"
    share: names the row's value that is the share of dense, shown beside it as a change, "(-41%)"
    left: text that may be folded into several lines, such as a config; the first column always is
    """

    key: str
    heading: str | None = None
    form: str | Callable[[Any], str] = ""
    share: str | None = None
    left: bool = False

    def text(self, row: Mapping[str, Any]) -> str:
        """The cell of `row`."""
        value = row.get(self.key)
        if value is None:
            return MISSING
        if isinstance(value, str):
            return value
        text = format(value, self.form) if isinstance(self.form, str) else self.form(value)
        share = row.get(self.share) if self.share else None
        return text if share is None else change_text(text, share)


class Table:
    """Columns, given as `Column` or by name alone, and rows, mappings that may hold more than is shown."""

    def __init__(self, columns: Sequence[Column | str], rows: Iterable[Mapping[str, Any]] = ()):
        self.columns = [Column(column) if isinstance(column, str) else column for column in columns]
        self.rows: list[Mapping[str, Any]] = list(rows)

    def add(self, *values: Any, **named: Any) -> None:
        """Add a row: values in the order of the columns, or by their keys."""
        self.rows.append(dict(zip((column.key for column in self.columns), values, strict=False)) | named)

    @property
    def headings(self) -> list[str]:
        """The column headings."""
        return [column.key if column.heading is None else column.heading for column in self.columns]

    def cells(self) -> list[list[str]]:
        """The text of every cell, row by row."""
        return [[column.text(row) for column in self.columns] for row in self.rows]

    def print(self, title: str | None = None, notes: Iterable[str] = (), to: Console | None = None) -> None:
        """Print to the terminal; columns that do not fit follow in further blocks, each with the first column."""
        to = console() if to is None else to
        if title is not None:
            to.print(f"[bold]{escape(title)}[/bold]", soft_wrap=True)
        cells = self.cells()
        places = range(len(self.columns))
        left = [place == 0 or self.columns[place].left for place in places]
        whole = [max(len(text) for text in (self.headings[p], *(row[p] for row in cells))) for p in places]
        narrow = [
            min(whole[p], _NAME_WIDTH)
            if left[p]
            else max([_longest_word(self.headings[p]), *(len(row[p]) for row in cells)])
            for p in places
        ]
        fits = sum(whole) + _GAP * (len(whole) - 1) <= to.width
        widths = whole if fits else narrow
        for number, block in enumerate(_blocks(widths, to.width)):
            if number:
                to.print()
            table = RichTable(header_style="bold", box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
            for p in block:
                heading = "\n".join(textwrap.wrap(self.headings[p], widths[p], break_long_words=False)) or " "
                how: dict[str, Any] = {"overflow": "fold"} if left[p] else {"justify": "right", "no_wrap": True}
                table.add_column(escape(heading), vertical="top", width=None if fits else widths[p], **how)
            for row in cells:
                table.add_row(*(escape(row[p]) for p in block))
            to.print(table)
        for note in notes:
            to.print(f"* {escape(note)}", soft_wrap=True)

    def markdown(self) -> str:
        """The table in Markdown, without a line break after it."""
        sides = ["---" if number == 0 or column.left else "---:" for number, column in enumerate(self.columns)]
        return "\n".join(["| " + " | ".join(map(plain, line)) + " |" for line in (self.headings, sides, *self.cells())])

    def csv(self, keys: Sequence[str] | None = None) -> str:
        """The rows' values, unrounded, under their keys (default: all keys that a row has, in order)."""
        return csv_text(self.rows, keys)


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns that fit beside each other; every block begins with the first column."""
    blocks, used = [[0]], widths[0]
    for place in range(1, len(widths)):
        if used + _GAP + widths[place] > room and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(place)
        used += _GAP + widths[place]
    return blocks


def console() -> Console:
    """Stdout as wide as its terminal, or `WIDTH` characters."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def plain(text: str) -> str:
    """Escape text for Markdown, also inside a table."""
    return "".join("\\" + letter if letter in "\\|*`<[" else letter for letter in text)


def csv_text(rows: Sequence[Mapping[str, Any]], keys: Sequence[str] | None = None) -> str:
    """CSV with one line per row; columns: `keys`, or all keys of the rows in the order in which they occur."""
    text = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row)) if keys is None else list(keys)
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
