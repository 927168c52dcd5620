"""What people download, behind one face: a zip archive, an unpacked folder, or a single file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from llava.cli import UserError

_IGNORED = frozenset({"__MACOSX", "answers", "answers_upload", "results", "reviews"})


class Source(Protocol):
    """Files by name; a name is a path with "/" as the source has it and is never used to write."""

    label: str
    names: list[str]

    def size(self, name: str) -> int:
        """Bytes of a file."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A file for reading."""
        ...

    def path(self, name: str) -> Path | None:
        """Where a file lies by itself; None inside an archive."""
        ...


@dataclass
class FolderSource:
    """The files in and below a folder (or one file); symbolic links are followed, as the hub's cache needs."""

    root: Path
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.root.is_file():
            self.root, self.names = self.root.parent, [self.root.name]
        else:
            files = (path.relative_to(self.root) for path in sorted(self.root.rglob("*")) if path.is_file())
            self.names = [path.as_posix() for path in files if _IGNORED.isdisjoint(path.parts)]
        self.label = str(self.root)

    def size(self, name: str) -> int:  # noqa: D102
        return (self.root / name).stat().st_size

    def open(self, name: str) -> BinaryIO:  # noqa: D102
        return (self.root / name).open("rb")

    def path(self, name: str) -> Path | None:  # noqa: D102
        return self.root / name


class ZipSource:
    """The files of a zip archive."""

    def __init__(self, archive: zipfile.ZipFile, label: str) -> None:
        self.archive, self.label = archive, label
        entries = (entry for entry in archive.infolist() if not entry.is_dir())
        self.entries = {e.filename: e for e in entries if _IGNORED.isdisjoint(e.filename.split("/"))}
        self.names = list(self.entries)

    def size(self, name: str) -> int:  # noqa: D102
        return self.entries[name].file_size

    def open(self, name: str) -> BinaryIO:  # noqa: D102
        return self.archive.open(self.entries[name])

    def path(self, name: str) -> Path | None:  # noqa: D102
        return None


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """A downloaded zip, folder or file.

    Raises:
        UserError: there is nothing at `path`, or it is a damaged or encrypted archive.

    """
    if not path.exists():
        raise UserError(f"source not found: {path}")
    if path.suffix.lower() != ".zip":
        yield FolderSource(path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.flag_bits & 1 for entry in archive.infolist()):
                raise UserError(f"{path} is encrypted; unpack it and give the folder")
            yield ZipSource(archive, str(path))
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is not a whole zip archive ({error}); download it again") from None


def find(source: Source, wanted: str) -> str | None:
    """The file whose path agrees with `wanted` in most parts, counted from the end; None if not even the name does."""
    parts = wanted.split("/")
    best, best_score = None, 0
    for name in source.names:
        score = _common_end(name.split("/"), parts)
        if score > best_score or (score == best_score and best is not None and len(name) < len(best)):
            best, best_score = name, score
    return best


def _common_end(name: list[str], wanted: list[str]) -> int:
    count = 0
    for mine, other in zip(reversed(name), reversed(wanted), strict=False):
        if mine != other:
            break
        count += 1
    return count
