"""Stream rows of published tables (gigabytes of images): the hub's parquet files, and TSV.

Memory stays at about twice the images of one row group (the hub writes 100 rows per group): that is the least part of
a parquet file that can be decoded.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.cli import UserError
from llava.eval.metrics.tables import read_table

BATCH = 16
"""Rows in memory at a time."""
_LONGEST_REFERENCE = 64
"""A shorter image cell is no image but the index of the row that has it."""


def choose(names: Sequence[str], *patterns: str) -> list[str]:
    """The names that match the first of `patterns` that any name matches (or matches as "…/pattern"), in order.

    A pattern for tables (.tsv) ignores case and chooses one.
    """
    for pattern in patterns:
        is_table = pattern.endswith(".tsv")
        fits = {name: name.lower() if is_table else name for name in names}
        chosen = sorted(name for name, form in fits.items() if fnmatch(form, pattern) or fnmatch(form, f"*/{pattern}"))
        if chosen:
            return chosen[:1] if is_table else chosen
    return []


def parquet_rows(
    paths: Sequence[Path], columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The rows of parquet files one after another, with a progress bar.

    Args:
        paths: the files.
        columns: columns that must be there.
        optional: columns that are read where they are.

    Raises:
        UserError: pyarrow is not installed, a file cannot be read, or a column is missing.

    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{paths[0]}: reading parquet files needs pyarrow: pip install pyarrow") from None
    try:
        total = 0
        for path in paths:
            with ParquetFile(path) as file:
                total += file.metadata.num_rows
                found = file.schema_arrow.names
            missing = [column for column in columns if column not in found]
            if missing:
                raise UserError(f"{path}: column {missing[0]!r} is missing; found {', '.join(found)}")
        with tqdm(total=total, unit="row", desc=paths[0].name if len(paths) == 1 else f"{len(paths)} files") as bar:
            for path in paths:
                # Without these two settings pyarrow holds several row groups, or all of them, at a time.
                with ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
                    wanted = [name for name in file.schema_arrow.names if name in (*columns, *optional)]
                    for batch in file.iter_batches(BATCH, columns=wanted):
                        yield from batch.to_pylist()
                        bar.update(len(batch))
    except (ArrowException, OSError) as error:
        raise UserError(f"{paths[0]}: not a readable parquet file: {' '.join(str(error).split())}") from None


def table_rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of a published TSV table, "image" as bytes, or as text where it is another row's index.

    Raises `UserError`: as in `read_table`; an image that is not base64 text.
    """
    for where, row in read_table(path, columns):
        cell = row["image"]
        try:
            yield row | {"image": cell if len(cell) <= _LONGEST_REFERENCE else base64.b64decode(cell, validate=True)}
        except binascii.Error as error:
            raise UserError(f"{where}: the image is not base64 text ({error})") from None


def table_columns(path: Path) -> list[str]:
    """The column names of a TSV table."""
    with open(path, encoding="utf-8") as file:
        return file.readline().rstrip("\n").split("\t")
