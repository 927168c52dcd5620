"""Writing benchmark files: pictures as PNG, JSON and JSON lines, and the removal of what an earlier run wrote."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def start_over(folder: Path, owned: Iterable[str]) -> None:
    """Make `folder` and delete the files and folders named in `owned`; anything else in it (answers, say) stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in owned:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [H, W, 3] RGB; the bytes depend on the pixels only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value in UTF-8, keys in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line in UTF-8."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
