"""Images inside tables: the bytes of a cell, and the file ending that fits them."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from llava.eval.prepare.layout import PrepareError

_SIGNATURES = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG\r\n\x1a\n", ".png"), (b"GIF8", ".gif"), (b"BM", ".bmp"))


def suffix_of(data: bytes, where: str) -> str:
    """The ending of an image's file name by its first bytes, e.g. ".jpg"; a PrepareError names `where` it is none."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    for signature, suffix in _SIGNATURES:
        if data.startswith(signature):
            return suffix
    raise PrepareError(f"{where}: not an image (JPEG, PNG, GIF, BMP or WebP); begins with {data[:8]!r}")


def image_bytes(cell: Any, where: str) -> bytes:
    """The bytes of an image cell as the hub's data sets store it: {"bytes", "path"}, or bytes.

    Raises:
        PrepareError: the cell is empty, or names a file that is not in the data set.

    """
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes) or not data:
        path = cell.get("path") if isinstance(cell, dict) else None
        raise PrepareError(f"{where}: no image in the row" + (f", only the path {path!r}" if path else ""))
    return data


def decode_base64(text: str, where: str) -> bytes:
    """The bytes of an image as base64 text; a PrepareError names `where` it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PrepareError(f"{where}: the image is not base64 text ({error})") from None
