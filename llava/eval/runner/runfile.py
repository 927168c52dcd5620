"""The run file beside an answers file: settings, versions and totals.

`answers.jsonl` has `answers.run.json`. It is written before the first answer, every few seconds and at the end, each
time whole or not at all. Its "settings" are everything that answers depend on; a run is continued only under the same
ones.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from llava import __version__
from llava.cli import UserError
from llava.eval.runner.answers_file import AGAIN, CONTINUE
from llava.files import fingerprint as fingerprint
from llava.files import replacing


def run_file_of(answers_file: Path) -> Path:
    """`x.jsonl` → `x.run.json`, in the same folder."""
    name = answers_file.name
    return answers_file.with_name(name.removesuffix(".jsonl") + ".run.json")


def write_run_file(path: Path, record: Mapping[str, Any]) -> None:
    """Replace the run file atomically.

    Raises `UserError` where it cannot be written.
    """
    try:
        with replacing(path) as file:
            file.write(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; {CONTINUE}") from error


def read_run_file(path: Path) -> dict[str, Any] | None:
    """The run file's record, None where there is none; `UserError` where it is unreadable."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise UserError(f"{path} is not a run file; {AGAIN}")
    return record


def check_settings(answers_file: Path, record: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> None:
    """Raise `UserError` unless the answers, described by `record`, were made with `settings`."""
    if record is None:
        raise UserError(
            f"{answers_file} holds answers but {run_file_of(answers_file).name} is missing, so that it is unknown how "
            f"they were made; {AGAIN}"
        )
    details = "; ".join(_changes(record["settings"], json.loads(json.dumps(settings))))
    if details:
        raise UserError(f"{answers_file} was made with other settings ({details}); {AGAIN}")


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], of: str = "") -> Iterator[str]:
    """Every setting that differs; of two objects, such as pruning configs, key by key."""
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _changes(before, now, f"{of}{name}: ")
        elif before != now:
            yield f"{of}{name}: {_short(before)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 160 else text[:157] + "…"


def versions() -> dict[str, str | None]:
    """Versions of Python, of the packages that answers depend on, and this package's git commit if it is a checkout."""
    found: dict[str, str | None] = {"python": platform.python_version(), "llava": __version__}
    for package in ("torch", "transformers", "tokenizers", "pillow", "av"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found | {"commit": _commit(Path(__file__).parent)}


def _commit(folder: Path) -> str | None:
    """The checkout's commit, "+changes" appended where tracked files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # an installation below somebody else's repository is not its code
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
