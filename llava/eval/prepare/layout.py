"""Write into a benchmark's folder: only inside it, only whole files, existing files are kept."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from llava.cli import UserError
from llava.files import replacing

_CHUNK = 1 << 20
Write = Callable[[Any], None]


_SIGNATURES = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG\r\n\x1a\n", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"))


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

        Raises `UserError`: `relative` is absolute or contains "..".
        """
        path = Path(relative)
        if not relative or path.is_absolute() or ".." in path.parts or "\0" in relative or "\\" in relative:
            raise UserError(f"{relative!r} must be a path inside {self.folder}, without '..'")
        return self.folder / path

    def keeps(self, relative: str) -> bool:
        """Whether a question or reference file is there and stays."""
        path = self.path(relative)
        if path.is_file() and (not self.overwrite or relative in self._replaced):
            self.kept += 1
            return True
        return False

    def image_bytes(self, cell: Any, where: str) -> bytes:
        """The bytes of an image cell as the hub's data sets store it: {"bytes", "path"}, or bytes.

        Raises `UserError`: the cell is empty, or names a file that is not in the data set.
        """
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes) or not data:
            path = cell.get("path") if isinstance(cell, dict) else None
            raise UserError(f"{where}: no image in the row" + (f", only the path {path!r}" if path else ""))
        return data

    def image_name(self, stem: str, cell: Any) -> str:
        """`stem` with the ending that fits the image's first bytes; `UserError` if they are no image's."""
        data = self.image_bytes(cell, f"image {stem}")
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return stem + ".webp"
        for signature, suffix in _SIGNATURES:
            if data.startswith(signature):
                return stem + suffix
        raise UserError(f"image {stem}: not an image (JPEG, PNG, GIF, BMP or WebP); begins with {data[:8]!r}")

    def image(self, relative: str, cell: Any) -> None:
        """Write the image of a cell; one of the same size is kept."""
        path, data = self.path(relative), self.image_bytes(cell, f"image {relative}")
        if not self._has(path, len(data)):
            with self._replacing(path, "wb") as file:
                file.write(data)

    def copy(self, relative: str, source: BinaryIO, size: int) -> None:
        """Copy a file of `size` bytes; one of the same size is kept.

        Raises `UserError`: the source is shorter or longer than `size`.
        """
        path = self.path(relative)
        if self._has(path, size):
            return
        with self._replacing(path, "wb") as file:
            while chunk := source.read(_CHUNK):
                file.write(chunk)
            if file.tell() != size:
                raise UserError(f"{path.name}: {file.tell()} of {size} bytes could be read; the source is damaged")
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

    def json(self, relative: str, document: Any) -> None:
        """Write a JSON document, unless the file is kept."""
        self.text(relative, json.dumps(document, ensure_ascii=False) + "\n")

    def text(self, relative: str, text: str) -> None:
        """Write a text file, unless it is kept."""
        with self._text(relative) as file:
            _write(file, text)

    def table(self, relative: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Write a TSV table, unless it is kept."""
        with self._text(relative) as file:
            if file is not None and rows:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)

    def rows(self, relative: str) -> Iterator[dict[str, Any]]:
        """The rows of a JSONL file of the folder, one by one; none where there is no such file.

        Raises `UserError`: a line is no JSON object with "image" as text.
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
                    raise UserError(f'{path}:{number}: expected a JSON object, its "image" a path')
                yield row

    def read_json(self, relative: str) -> Any:
        """The JSON document of a file of the folder; `UserError` if it is none."""
        path = self.path(relative)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as JSON: {error}") from None

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
            raise UserError(f"{path} is not written: a symbolic link leads out of {self.folder}")
        with replacing(path, mode, sync=mode == "w") as file:
            yield file
        self.written += 1


def _write(file: TextIO | None, text: str) -> None:
    if file is not None:
        file.write(text)
