"""Files: written whole or not at all, and recognised by a fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

SAMPLES, SAMPLE_BYTES = 16, 1 << 16


@contextmanager
def replacing(path: Path, mode: str = "w", sync: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` when the block succeeds; on an error `path` is unchanged.

    Neither a reader nor a kill meets half of a file. Folders are made.

    Args:
        path: where the file shall be.
        mode: "w" (UTF-8 text, line ends as they are written) or "wb".
        sync: whether to wait until it is on the disk, so that a power cut leaves no half either; takes milliseconds,
            which add up over many small files.

    Raises:
        OSError: the file or its folder cannot be written.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with open(temporary, mode, **text) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write one JSON value in UTF-8, whole or not at all, keys in the order given; the folder is made."""
    with replacing(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def fingerprint(path: Path) -> str:
    """SHA-256 over a file's size and bytes; above 1 MiB (2^20), over 16 evenly spaced samples of its bytes."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(str(size).encode())
    with open(path, "rb") as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for sample in range(SAMPLES):
                file.seek(sample * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
