"""What arrives in lmms-eval's `--model_args` and `generation_kwargs`, read and checked before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.model.pruning import PruningConfig

DEFAULT_NEW_TOKENS = 1024
DENSE = ("none", "dense")
HONOURED = (
    "do_sample",
    "max_new_tokens",
    "num_beams",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
    "until",
)
IGNORED = {
    "image_aspect_ratio": "images are prepared as the checkpoint asks",
    "seed": "lmms-eval's --seed rules",
}
"""Keys of tasks that do not reach the model, and what rules in their place."""


def pruning_of(given: Any) -> PruningConfig | None:
    """Read the model argument `pruning`: a JSON object, `none` or nothing.

    lmms-eval stores answers under the text of `model_args`. A path would keep that text while the file changes, and
    answers of another config would be taken from the store: it is refused, with what to write in its place.

    Raises:
        ValueError: a path, something else that is no JSON object, or settings that `PruningConfig` refuses.

    """
    if given is None or isinstance(given, str) and given.strip().lower() in ("", *DENSE):
        return None
    if isinstance(given, Mapping):
        return PruningConfig.from_dict(given)
    text = str(given).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":  # quotes meant for a shell that was not there
        text = text[1:-1]
    if text.startswith("{"):
        return PruningConfig.from_json(text)
    if text.endswith(".json"):
        raise ValueError(
            f"pruning={text} is a path; lmms-eval would answer from its response cache after the file has changed. "
            f"Give the settings themselves: pruning={_inline(text)}"
        )
    raise ValueError(f'pruning={text!r}: expected a JSON object such as {{"mode":["shallow"],…}}, or none')


def _inline(path: str) -> str:
    config = PruningConfig.from_json(path)
    settings = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    return json.dumps(settings if isinstance(settings, dict) else config.to_dict(), separators=(",", ":"))


def prefix_cache_bytes_of(reuse: bool | str, room: int | str) -> int | None:
    """Read the model arguments `reuse_prefix` and `prefix_cache_bytes`: bytes for prefixes, None for no reuse.

    Raises:
        ValueError: something else than true or false, or than a number from 0.

    """
    if str(reuse).lower() not in ("true", "false"):
        raise ValueError(f"reuse_prefix must be true or false, got {reuse!r}")
    if not str(room).isdecimal():
        raise ValueError(f"prefix_cache_bytes must be a number from 0, got {room!r}")
    return int(room) if str(reuse).lower() == "true" else None


def batch_size_of(given: int | str) -> int:
    """Read lmms-eval's `--batch_size`, which may be text; `ValueError` unless it is a number from 1."""
    if not str(given).isdecimal() or int(given) < 1:
        raise ValueError(f"batch_size must be a number from 1, got {given!r} (auto is not supported)")
    return int(given)


@dataclass(frozen=True)
class Decoding:
    """How answers are generated: keyword arguments of `generate` as sorted pairs, and the stop strings."""

    arguments: tuple[tuple[str, Any], ...]
    until: tuple[str, ...] = ()


def decoding_of(given: Mapping[str, Any] | None) -> Decoding:
    """Read a task's `generation_kwargs`; greedy, one beam and 1024 new tokens unless it says otherwise.

    Answers are sampled when `do_sample` says so, or, without it, when `temperature` is above 0; never at temperature 0.
    Of keys that are None the default holds. Keys in `IGNORED` are left out.

    Raises:
        ValueError: a key that is not known here, or a value that cannot be.

    """
    given = {key: value for key, value in (given or {}).items() if value is not None and key not in IGNORED}
    if unknown := sorted(set(given) - set(HONOURED)):
        raise ValueError(f"generation_kwargs has {', '.join(unknown)}; known: {', '.join((*HONOURED, *IGNORED))}")
    until = given.pop("until", ())
    if isinstance(until, str):
        until = [until]
    if not isinstance(until, list | tuple) or not all(isinstance(word, str) for word in until):
        raise ValueError(f"generation_kwargs: until must be a string or a list of strings, got {until!r}")
    temperature = _number(given, "temperature", None, 0)
    samples = bool(given.get("do_sample", bool(temperature)))
    if temperature == 0:
        samples = False
    arguments: dict[str, Any] = {
        "do_sample": samples,
        "max_new_tokens": _whole(given, "max_new_tokens", DEFAULT_NEW_TOKENS, 1),
        "num_beams": _whole(given, "num_beams", 1, 1),
        "temperature": (1.0 if temperature is None else temperature) if samples else None,
        "top_p": _number(given, "top_p", None, 0) if samples else None,
    }
    top_k = _whole(given, "top_k", None, 0)
    if not samples or top_k is not None:
        arguments["top_k"] = top_k if samples else None
    if "repetition_penalty" in given:
        arguments["repetition_penalty"] = _number(given, "repetition_penalty", 1.0, 0)
    return Decoding(tuple(sorted(arguments.items())), tuple(word for word in until if word))


def _whole(given: Mapping[str, Any], key: str, default: int | None, low: int) -> int | None:
    value = _number(given, key, default, low)
    if value is not None and value != int(value):
        raise ValueError(f"generation_kwargs: {key} must be a whole number, got {value!r}")
    return None if value is None else int(value)


def _number(given: Mapping[str, Any], key: str, default: float | None, low: float) -> float | None:
    value = given.get(key, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < low:
        raise ValueError(f"generation_kwargs: {key} must be a number ≥ {low}, got {value!r}")
    return value
