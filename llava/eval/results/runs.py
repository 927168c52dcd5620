"""Runs of the loader read back: the answers by question, their traces, and what the run file says about them.

A run is X.jsonl with X.run.json beside it, and X.times.jsonl where the milliseconds are not in the answers. Chunks of
one run (the same folder and settings, --chunk-idx 0, 1, …) are put together and count as one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import Answer, ScoreError, parse_answer, read_jsonl
from llava.eval.runner.parts import read_times
from llava.eval.runner.runfile import RunFileError, fingerprint, read_run_file, run_file_of
from llava.eval.runner.totals import Totals

Key = tuple[str, str]
"""(question id, prompt): what names a question, since MME and TextVQA use one id for all questions of an image."""

RUN_FILE = ".run.json"
_CHUNK_NAME = re.compile(r"\d+_\d+")


class RunError(ValueError):
    """A run that cannot be read or used; the message is one line that says what to do."""


@dataclass(frozen=True)
class EvalRun:
    """One run, read whole.

    `answers_file` is its (first) answers file, `record` the run file of that; `answers` and `traces` (the answers'
    "metadata") are by question, in file order; `skipped` counts questions left out by --skip-bad; `problem` says why it
    is unfinished, None for a finished run.
    """

    answers_file: Path
    record: dict[str, Any]
    answers: dict[Key, Answer]
    traces: dict[Key, dict[str, Any]]
    skipped: int
    problem: str | None

    @property
    def name(self) -> str:
        """The answers file's name, or that of its folder where the file is named after its chunk (`2_0.jsonl`)."""
        stem = self.answers_file.name.removesuffix(".jsonl")
        return self.answers_file.resolve().parent.name if _CHUNK_NAME.fullmatch(stem) else stem

    @property
    def settings(self) -> dict[str, Any]:
        """What the answers depend on (`llava.eval.runner.plan`)."""
        return self.record["settings"]

    @property
    def left_out(self) -> str | None:
        """Which questions of the file a finished run leaves out on purpose, in words; None where it asked them all."""
        limit = self.record.get("limit")
        reasons = [f"{self.skipped} skipped (--skip-bad)"] if self.skipped else []
        if limit is not None and limit <= len(self.answers) + self.skipped:
            reasons.insert(0, f"only the first {limit} of the file (--limit)")
        return ", ".join(reasons) or None

    @property
    def model(self) -> str:
        """The model as the settings identify it, with its base where it has one."""
        base = self.settings.get("model_base")
        return str(self.settings.get("model")) + (f" on {base}" if base else "")

    @property
    def question_file(self) -> Path:
        """Where the run found its questions."""
        return Path(str(self.record.get("question_file", "")))

    def totals(self, keys: Iterable[Key] | None = None) -> Totals:
        """Sums over the traces of `keys` (default: of all answers); `RunError` where an answer has no trace."""
        totals = Totals()
        for key in self.traces if keys is None else keys:
            try:
                totals.add(self.traces[key])
            except (KeyError, TypeError) as error:
                raise RunError(f"{self.answers[key].where} has no trace in its metadata ({error})") from None
        return totals

    def images(self) -> dict[Key, str] | None:
        """The image of every question that has one; None where the question file is gone or is not the one asked."""
        if not self.question_file.is_file():
            return None
        if fingerprint(self.question_file)[:16] != self.settings.get("question_file"):
            return None
        rows = read_jsonl(self.question_file, "question file")
        return {
            (str(row["question_id"]), row["text"]): json.dumps(row["image"])
            for _, row in rows
            if row.get("image") is not None
        }


def read_run(path: str | Path) -> EvalRun:
    """The one run that `path` names: an answers file, a run file, or a folder with a single run in it.

    Raises:
        RunError: nothing there, several runs in the folder, or what `find_runs` raises.

    """
    runs = find_runs([path])
    if len(runs) > 1:
        names = ", ".join(str(run.answers_file) for run in runs[:4]) + (", …" if len(runs) > 4 else "")
        raise RunError(f"{path} holds {len(runs)} runs; name one of them: {names}")
    return runs[0]


def find_runs(paths: Iterable[str | Path]) -> list[EvalRun]:
    """All runs that `paths` name; of a folder, those anywhere inside it, sorted by path.

    A chunk's answers or run file stands for that chunk alone; a folder puts its chunks together.

    Raises:
        RunError: a path that is not there or holds no run; a broken run file; answers missing, broken, without
            prompt, or two to one question.

    """
    groups: dict[tuple, list[tuple[Path, dict[str, Any]]]] = {}
    for path in map(Path, paths):
        files = sorted(path.rglob(f"*{RUN_FILE}")) if path.is_dir() else [_run_file(path)]
        if not files:
            raise RunError(f"{path} holds no run (no *{RUN_FILE} in it or below)")
        for file in files:
            answers, record = file.with_name(file.name.removesuffix(RUN_FILE) + ".jsonl"), _record(file)
            _, count = _chunk(record)
            same = {key: value for key, value in record["settings"].items() if key != "chunk"}
            alone = answers.resolve() if count == 1 or not path.is_dir() else answers.resolve().parent
            part = (answers, record)
            parts = groups.setdefault((alone, count, json.dumps(same, sort_keys=True)), [])
            if all(answers.resolve() != other.resolve() for other, _ in parts):
                parts.append(part)
    return [_assemble(parts) for parts in groups.values()]


def _run_file(path: Path) -> Path:
    if path.name.endswith(RUN_FILE):
        return path
    return run_file_of(path if path.suffix == ".jsonl" else path.with_name(path.name + ".jsonl"))


def _record(file: Path) -> dict[str, Any]:
    try:
        record = read_run_file(file)
    except RunFileError:
        raise RunError(f"{file} is not a run file of llava.eval.model_vqa_loader") from None
    if record is None:
        raise RunError(f"{file} is missing: a run is X.jsonl with X{RUN_FILE} beside it")
    return record


def _chunk(record: dict[str, Any]) -> tuple[int, int]:
    index, count = record["settings"].get("chunk") or (0, 1)
    return index, count


def _assemble(parts: list[tuple[Path, dict[str, Any]]]) -> EvalRun:
    parts = sorted(parts, key=lambda part: _chunk(part[1]))
    answers: dict[Key, Answer] = {}
    traces: dict[Key, dict[str, Any]] = {}
    for path, _ in parts:
        for answer, metadata in _read_answers(path):
            key = (answer.question_id, answer.prompt)
            if key in answers:
                raise RunError(f"{answer.where} answers the question of {answers[key].where} again")
            answers[key], traces[key] = answer, metadata
    skipped = sum(len(record.get("skipped", ())) for _, record in parts)
    return EvalRun(parts[0][0], parts[0][1], answers, traces, skipped, _problem(parts))


def _read_answers(path: Path) -> Iterable[tuple[Answer, dict[str, Any]]]:
    try:
        times = read_times(path)
        for where, row in read_jsonl(path, "answers file"):
            answer = parse_answer(row, where)
            if answer.prompt is None:
                raise RunError(f'{where}: key "prompt" is missing; the question is found through it')
            metadata = row.get("metadata") if isinstance(row.get("metadata"), dict) else {}
            metadata = metadata | times.get((answer.question_id, answer.prompt), {})
            # "kept" is as long as the prompt has visual tokens, and nothing here reads it
            yield answer, {key: value for key, value in metadata.items() if key != "kept"}
    except ScoreError as error:
        raise RunError(str(error)) from None


def _problem(parts: Collection[tuple[Path, dict[str, Any]]]) -> str | None:
    for path, record in parts:
        if record.get("state") != "finished":
            return f"{path} is {record.get('state', 'of unknown state')}"
    count = _chunk(next(iter(parts))[1])[1]
    if len(parts) < count:
        return f"{len(parts)} of {count} chunks are there"
    return None
