"""Sources of a pruning config: JSON text, a JSON file, and classes in a user's own file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .fields import nearest

EXAMPLE = '{"mode": ["shallow", "middle", "deep"], …}'


def read_settings(source: str | os.PathLike) -> Mapping[str, Any]:
    """Return the JSON object that `source` is, as text, or the path of a file that holds it (`~` is expanded).

    Raises:
        ValueError: no JSON object, a key that stands twice, or a file that cannot be read.

    """
    text = os.fspath(source)
    origin = f"pruning config {text if len(text) <= 120 else text[:117] + '…'!r}"
    advice = f"expected an object such as {EXAMPLE} or a path to a .json file"
    path = _path_of(source)
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except IsADirectoryError:
            raise ValueError(f"{origin} is a folder; give the .json file in it") from None
        except OSError as error:
            raise ValueError(f"{origin} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{origin} is not a text file in UTF-8") from None
        if path.suffix in (".yaml", ".yml"):
            advice = "YAML is not read; write the same settings as JSON"
    try:
        settings = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, origin))
    except _Twice as error:
        raise ValueError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin} is not JSON ({' '.join(str(error).split())}); {advice}") from None
    if not isinstance(settings, Mapping):
        raise ValueError(f"{origin}: a pruning config is a JSON object, got {type(settings).__name__}")
    return settings


class _Twice(ValueError):
    pass


def _path_of(source: str | os.PathLike) -> Path | None:
    """Return the path that `source` is; None for JSON text."""
    text = os.fspath(source).strip()
    if isinstance(source, str) and text[:1] in ("{", "["):
        return None
    path = Path(os.fspath(source).strip()).expanduser()
    try:
        exists = path.exists()
    except (OSError, ValueError):  # too long for a path, or a null byte in it
        return None
    named = text.endswith((".json", ".yaml", ".yml")) or not isinstance(source, str)
    return path if text and (named or exists) else None


def _unique(pairs: list[tuple[str, Any]], origin: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key, value in pairs:
        if key in settings:
            raise _Twice(f"{origin} has the key {key!r} twice; leave one out")
        settings[key] = value
    return settings


def load_class(reference: str) -> type:
    """Return the class that `path/to/file.py:Class` or `package.module:Class` names.

    A file is executed once, and again when it was edited.

    Raises:
        ValueError: a file or module that is missing or fails, or that defines no such class.

    """
    where, _, name = reference.rpartition(":")
    try:
        module = _load_file(where) if where.endswith(".py") else importlib.import_module(where)
    except FileNotFoundError:
        raise ValueError(f"method {reference!r}: there is no file {where!r} (relative to {os.getcwd()})") from None
    except Exception as error:  # whatever the user's code raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"method {reference!r}: {where!r} cannot be imported ({reason})") from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ValueError(f"method {reference!r}: {where!r} defines no class {name!r}{nearest(name, classes)}")
    return found


def _load_file(path: str) -> Any:
    file = Path(path).expanduser().resolve()
    version = f"{file} {file.stat().st_mtime_ns}"  # an edited file is executed again
    name = f"{file.stem}_{hashlib.sha1(version.encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look the module up while it is executed
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
