"""lmms-eval's `--model_args`, read and checked before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.cli import VideoOptions
from llava.model.pruning import PruningConfig
from llava.model.pruning.prefix_cache import CACHE_BYTES


def pruning_of(given: Any) -> PruningConfig | None:
    """Read the model argument `pruning`: a JSON object, `none` or nothing.

    lmms-eval stores answers under the text of `model_args`. A path would keep that text while the file changes, and
    answers of another config would be taken from the store: it is refused, with what to write in its place.

    Raises:
        ValueError: a path, something else that is no JSON object, or settings that `PruningConfig` refuses.

    """
    if given is None or isinstance(given, str) and given.strip().lower() in ("", "none", "dense"):
        return None
    if isinstance(given, Mapping):
        return PruningConfig.from_dict(given)
    text = str(given).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":  # quotes meant for a shell that was not there
        text = text[1:-1]
    if text.startswith("{"):
        return PruningConfig.from_json(text)
    if text.endswith(".json"):
        config = PruningConfig.from_json(text)
        settings = json.loads(Path(text).expanduser().read_text(encoding="utf-8-sig"))
        settings = settings if isinstance(settings, dict) else config.to_dict()
        raise ValueError(
            f"pruning={text} is a path; lmms-eval would answer from its response cache after the file has changed. "
            f"Give the settings themselves: pruning={json.dumps(settings, separators=(',', ':'))}"
        )
    raise ValueError(f'pruning={text!r}: expected a JSON object such as {{"mode":["shallow"],…}}, or none')


def prefix_cache_of(given: Any, reuse: Any = None, room: Any = None) -> int | None:
    """Read the model argument `prefix_cache`: `auto`, `off` or a number of bytes; None for no prefix cache.

    `reuse` and `room` are the older arguments `reuse_prefix` (true or false) and `prefix_cache_bytes`.

    Raises:
        ValueError: none of these.

    """
    if reuse is not None and str(reuse).lower() not in ("true", "false"):
        raise ValueError(f"reuse_prefix must be true or false, got {reuse!r}")
    if room is not None and not str(room).isdecimal():
        raise ValueError(f"prefix_cache_bytes must be a number from 0, got {room!r}")
    if str(given).lower() not in ("auto", "off") and not str(given).isdecimal():
        raise ValueError(f"prefix_cache must be auto, off or a number of bytes, got {given!r}")
    if str(given).lower() == "off" or str(reuse).lower() == "false":
        return None
    if str(given).isdecimal():
        return int(given)
    return CACHE_BYTES if room is None else int(room)


def batch_size_of(given: int | str) -> int:
    """Read lmms-eval's `--batch_size`, which may be text; `ValueError` unless it is a number from 1."""
    if not str(given).isdecimal() or int(given) < 1:
        raise ValueError(f"batch_size must be a number from 1, got {given!r} (auto is not supported)")
    return int(given)


def pixels_of(name: str, given: int | str | None) -> int | None:
    """Read the model arguments `min_pixels` and `max_pixels`; `ValueError` unless it is a number from 1, or nothing."""
    if given is None or str(given).isdecimal() and int(given) > 0:
        return None if given is None else int(given)
    raise ValueError(f"{name} must be a number from 1, got {given!r}")


def rule_of(frames: int | str | None, fps: float | str | None) -> VideoOptions:
    """Read the model arguments `frames` and `fps`; `ValueError` unless a number from 1, one above 0, or nothing."""
    if frames is not None and not (str(frames).isdecimal() and int(frames) > 0):
        raise ValueError(f"frames must be a number from 1, got {frames!r}")
    try:
        rate = None if fps is None else float(fps)
    except ValueError:
        rate = -1.0
    if rate is not None and not 0 < rate < float("inf"):
        raise ValueError(f"fps must be a number above 0, got {fps!r}")
    return VideoOptions(frames=None if frames is None else int(frames), fps=rate)
