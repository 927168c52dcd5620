"""One interface to downloads: a zip archive, an unpacked folder, or a single file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llava.cli import UserError

_IGNORED = frozenset({"__MACOSX", "answers", "answers_upload", "results", "reviews"})


@dataclass(frozen=True)
class File:
    """One file of a source: its bytes, how to open it, and where it lies by itself (None inside an archive)."""

    size: int
    open: Callable[[], BinaryIO]
    path: Path | None = None


@dataclass(frozen=True)
class Source:
    """Files by name; a name is a path with "/" as the source has it, and is never used to write."""

    label: str
    files: dict[str, File]


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """A downloaded zip, folder or file; symbolic links in a folder are followed, as the hub's cache needs.

    Raises `UserError`: there is nothing at `path`, or it is a damaged or encrypted archive.
    """
    if not path.exists():
        raise UserError(f"source not found: {path}")
    if path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                yield _archived(archive, path)
        except zipfile.BadZipFile as error:
            raise UserError(f"{path} is not a whole zip archive ({error}); download it again") from None
        return
    root, found = (path.parent, [path]) if path.is_file() else (path, sorted(path.rglob("*")))
    names = {file.relative_to(root): file for file in found if file.is_file()}
    yield Source(
        str(root),
        {
            name.as_posix(): File(file.stat().st_size, lambda file=file: file.open("rb"), file)
            for name, file in names.items()
            if _IGNORED.isdisjoint(name.parts)
        },
    )


def _archived(archive: zipfile.ZipFile, path: Path) -> Source:
    if any(entry.flag_bits & 1 for entry in archive.infolist()):
        raise UserError(f"{path} is encrypted; unpack it and give the folder")
    entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
    return Source(
        str(path),
        {
            name: File(entry.file_size, lambda entry=entry: archive.open(entry))
            for name, entry in entries.items()
            if _IGNORED.isdisjoint(name.split("/"))
        },
    )


def find(source: Source, wanted: str) -> str | None:
    """The file whose path agrees with `wanted` in most parts, counted from the end; None if not even the name does."""
    parts = wanted.split("/")[::-1]

    def agreement(name: str) -> tuple[int, int]:
        equal = [mine == other for mine, other in zip(name.split("/")[::-1], parts, strict=False)]
        return (equal + [False]).index(False), -len(name)

    best = max(source.files, key=agreement, default=None)
    return best if best is not None and agreement(best)[0] else None
