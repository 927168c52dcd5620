"""Writing into a benchmark's folder: inside it only, whole files only, what is there already is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from llava.files import replacing

_CHUNK = 1 << 20
Write = Callable[[Any], None]


class PrepareError(ValueError):
    """A source that cannot be used; the message is one line that says what was given and what to do."""


@dataclass
class Layout:
    """A benchmark's folder that is being filled; counts the files that were written and kept.

    `overwrite` replaces question and reference files; images are replaced where their size differs.
    """

    folder: Path
    overwrite: bool = False
    written: int = 0
    kept: int = 0
    _replaced: set[str] = field(default_factory=set)

    def path(self, relative: str) -> Path:
        """The path of a file in the folder.

        Raises:
            PrepareError: `relative` is absolute or contains "..".

        """
        path = Path(relative)
        if not relative or path.is_absolute() or ".." in path.parts or "\0" in relative or "\\" in relative:
            raise PrepareError(f"{relative!r} must be a path inside {self.folder}, without '..'")
        return self.folder / path

    def keeps(self, relative: str) -> bool:
        """Whether a question or reference file is there and stays."""
        path = self.path(relative)
        if path.is_file() and (not self.overwrite or relative in self._replaced):
            self.kept += 1
            return True
        return False

    def image(self, relative: str, data: bytes) -> None:
        """Write an image; one of the same size is kept."""
        path = self.path(relative)
        if self._has(path, len(data)):
            return
        with self._replacing(path, "wb") as file:
            file.write(data)

    def copy(self, relative: str, source: BinaryIO, size: int) -> None:
        """Copy a file of `size` bytes; one of the same size is kept.

        Raises:
            PrepareError: the source ends early or goes on.

        """
        path = self.path(relative)
        if self._has(path, size):
            return
        with self._replacing(path, "wb") as file:
            while chunk := source.read(_CHUNK):
                file.write(chunk)
            if file.tell() != size:
                raise PrepareError(f"{path.name}: {file.tell()} of {size} bytes could be read; the source is damaged")
        self._replaced.add(relative)

    def _has(self, path: Path, size: int) -> bool:
        try:
            there = path.stat().st_size == size
        except OSError:
            return False
        self.kept += there
        return there

    @contextmanager
    def lines(self, relative: str) -> Iterator[Write]:
        """A function that writes one row of a JSONL file; does nothing where the file is kept."""
        with self._text(relative) as file:
            yield lambda row: _write(file, json.dumps(row, ensure_ascii=False) + "\n")

    @contextmanager
    def array(self, relative: str, key: str | None = None) -> Iterator[Write]:
        """A function that writes one item of a JSON list (under `key` of an object, if given); as `lines` otherwise."""
        with self._text(relative) as file:
            _write(file, "[" if key is None else f'{{"{key}": [')
            separator = ""

            def write(item: Any) -> None:
                nonlocal separator
                _write(file, separator + json.dumps(item, ensure_ascii=False))
                separator = ",\n"

            yield write
            _write(file, "]\n" if key is None else "]}\n")

    @contextmanager
    def mapping(self, relative: str) -> Iterator[Write]:
        """A function that writes one (key, value) of a JSON object; as `lines` otherwise."""
        with self._text(relative) as file:
            _write(file, "{")
            separator = ""

            def write(item: tuple[str, Any]) -> None:
                nonlocal separator
                key, value = item
                _write(file, f"{separator}{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
                separator = ",\n"

            yield write
            _write(file, "}\n")

    def rows(self, relative: str) -> Iterator[dict[str, Any]]:
        """The rows of a JSONL file of the folder, one by one; none where there is no such file.

        Raises:
            PrepareError: a line is no JSON object with "image" as text.

        """
        path = self.path(relative)
        if not path.is_file():
            return
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    valid = isinstance(row, dict) and isinstance(row.get("image", ""), str)
                except json.JSONDecodeError:
                    valid = False
                if not valid:
                    raise PrepareError(f'{path}:{number}: expected a JSON object, its "image" a path')
                yield row

    def json(self, relative: str) -> Any:
        """The JSON document of a file of the folder; a PrepareError tells that it is none."""
        path = self.path(relative)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PrepareError(f"{path} cannot be read as JSON: {error}") from None

    @contextmanager
    def text(self, relative: str) -> Iterator[TextIO | None]:
        """A text file for writing, None where the file is kept."""
        with self._text(relative) as file:
            yield file

    @contextmanager
    def _text(self, relative: str) -> Iterator[TextIO | None]:
        if self.keeps(relative):
            yield None
            return
        with self._replacing(self.path(relative), "w") as file:
            yield file
        self._replaced.add(relative)

    @contextmanager
    def _replacing(self, path: Path, mode: str) -> Iterator[Any]:
        if not path.parent.resolve().is_relative_to(self.folder.resolve()):
            raise PrepareError(f"{path} is not written: a symbolic link leads out of {self.folder}")
        with replacing(path, mode, sync=mode == "w") as file:
            yield file
        self.written += 1


def _write(file: TextIO | None, text: str) -> None:
    if file is not None:
        file.write(text)
