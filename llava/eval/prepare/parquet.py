"""Rows of parquet files, a few at a time: the hub's snapshots are gigabytes of images.

Memory stays at about twice the images of one row group (the hub writes 100 rows a group): that is the least part of a
file that can be decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.eval.prepare.layout import PrepareError

BATCH = 16
"""Rows in memory at a time."""


def choose(names: Sequence[str], *patterns: str) -> list[str]:
    """The names that match the first of `patterns` that any name matches (or matches as "…/pattern"), in order."""
    for pattern in patterns:
        chosen = sorted(name for name in names if fnmatch(name, pattern) or fnmatch(name, f"*/{pattern}"))
        if chosen:
            return chosen
    return []


def rows(paths: Sequence[Path], columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of parquet files one after another, with a progress bar.

    Args:
        paths: the files.
        columns: columns that must be there.
        optional: columns that are read where they are.

    Raises:
        PrepareError: pyarrow is not installed, a file cannot be read, or a column is missing.

    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise PrepareError(f"{paths[0]}: reading parquet files needs pyarrow: pip install pyarrow") from None
    try:
        total = 0
        for path in paths:
            with ParquetFile(path) as file:
                total += file.metadata.num_rows
                found = file.schema_arrow.names
            missing = [column for column in columns if column not in found]
            if missing:
                raise PrepareError(f"{path}: column {missing[0]!r} is missing; found {', '.join(found)}")
        with tqdm(total=total, unit="row", desc=paths[0].name if len(paths) == 1 else f"{len(paths)} files") as bar:
            for path in paths:
                # Without these two settings pyarrow holds several row groups, or all of them, at a time.
                with ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
                    wanted = [name for name in file.schema_arrow.names if name in (*columns, *optional)]
                    for batch in file.iter_batches(BATCH, columns=wanted):
                        yield from batch.to_pylist()
                        bar.update(len(batch))
    except (ArrowException, OSError) as error:
        raise PrepareError(f"{paths[0]}: not a readable parquet file: {' '.join(str(error).split())}") from None
