"""`Run`: an evaluation run, just finished or read back from disk.

A run is X.jsonl (answers with traces), X.run.json (settings, totals, scores) and X.times.jsonl (times); X.parts has the
answers of an unfinished run. Chunks of one run (same folder and settings, --chunk-idx 0, 1, …) are merged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.metrics.answer_files import Answer, Key, parse_answer, read_jsonl
from llava.eval.metrics.intervals import share_interval
from llava.eval.runner.answers_file import parts_of, read_times
from llava.eval.runner.costs import Costs
from llava.eval.runner.runfile import fingerprint, read_run_file, run_file_of

RUN_FILE = ".run.json"
_CHUNK_NAME = re.compile(r"\d+_\d+")


@dataclass(frozen=True)
class Agreement:
    """How many of `count` answers are the same text, with Wilson's 95% interval in percent."""

    equal: int
    count: int
    low: float
    high: float

    @classmethod
    def of(cls, equal: int, count: int) -> Agreement:
        """The agreement of `equal` among `count` answers."""
        return cls(equal, count, *share_interval(equal, count))

    @property
    def percent(self) -> float:
        """The share of equal answers; 0 of none."""
        return 100 * self.equal / max(self.count, 1)

    def __str__(self) -> str:
        return f"{self.percent:.1f}% ({self.equal} of {self.count}, 95% interval {self.low:.1f} to {self.high:.1f})"


@dataclass(frozen=True)
class Run:
    """One run, read whole.

    answers_file:
        its (first) answers file
    record:
        the run file of that: "settings" are what the answers depend on, "totals" and "scores" what came of them
    answers, traces:
        by (question id, prompt), in file order; a trace is an answer's "metadata" without "kept", the kept positions
    skipped:
        number of questions left out by --skip-bad
    problem:
        why the run is unfinished, None for a finished one
    """

    answers_file: Path
    record: dict[str, Any]
    answers: dict[Key, Answer]
    traces: dict[Key, dict[str, Any]]
    skipped: int = 0
    problem: str | None = None

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Read the one run that `path` names: an answers file, a run file, or a folder with a single run in it.

        Raises:
            UserError: nothing there, several runs in the folder, or a run that cannot be read.

        """
        runs, broken = find_runs([path])
        if len(runs) > 1:
            names = ", ".join(str(run.answers_file) for run in runs[:4]) + (", …" if len(runs) > 4 else "")
            raise UserError(f"{path} holds {len(runs)} runs; name one of them: {names}")
        if not runs:
            raise UserError(broken[0])
        return runs[0]

    @property
    def name(self) -> str:
        """The answers file's name, or that of its folder where the file is named after its chunk (`2_0.jsonl`)."""
        stem = self.answers_file.name.removesuffix(".jsonl")
        return self.answers_file.resolve().parent.name if _CHUNK_NAME.fullmatch(stem) else stem

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the answers depend on."""
        return self.record["settings"]

    @property
    def config(self) -> dict[str, Any] | None:
        """The pruning config as `PruningConfig.to_dict` gives it; None for a dense run."""
        return self.settings.get("pruning_config")

    @property
    def model(self) -> str:
        """The model as the settings identify it, with its base where it has one."""
        base = self.settings.get("model_base")
        return str(self.settings.get("model")) + (f" on {base}" if base else "")

    @property
    def scores(self) -> dict[str, Any] | None:
        """The scores in the run file; None where it was not scored."""
        return self.record.get("scores")

    @property
    def totals(self) -> dict[str, Any]:
        """The run file's sums over all answers (`Costs.to_dict`)."""
        return self.record.get("totals", {})

    @cached_property
    def costs(self) -> Costs:
        """Costs of all answers; `UserError` if an answer has no trace."""
        return self.costs_of(self.traces)

    def costs_of(self, keys: Iterable[Key]) -> Costs:
        """Costs of the answers to `keys`; `UserError` if one has no trace."""
        costs = Costs()
        for key in keys:
            try:
                costs.add(self.traces[key])
            except (KeyError, TypeError) as error:
                raise UserError(f"{self.answers[key].where} has no trace in its metadata ({error})") from None
        return costs

    def agreement(self, other: Run, keys: Collection[Key] | None = None) -> Agreement:
        """Agreement of the answer texts of both runs over `keys` (default: questions that both answered)."""
        keys = [key for key in self.answers if key in other.answers] if keys is None else keys
        equal = sum(self.answers[key].text.strip() == other.answers[key].text.strip() for key in keys)
        return Agreement.of(equal, len(keys))

    @cached_property
    def question_file(self) -> Path:
        """The run's question file; one named relative to where the run was started is looked for above the answers."""
        named = Path(str(self.record.get("question_file", "")))
        above = [] if named.is_absolute() else self.answers_file.resolve().parents
        places = [named, *(folder / named for folder in above)]
        return next((place for place in places if place.is_file()), named)

    @cached_property
    def images(self) -> dict[Key, str] | None:
        """The image of every question that has one; None where the question file is gone or is not the one asked."""
        rows = self._questions
        return rows if rows is None else {key: image for key, image in rows.items() if image is not None}

    @cached_property
    def _questions(self) -> dict[Key, str | None] | None:
        if not self.question_file.is_file():
            return None
        if fingerprint(self.question_file)[:16] != self.settings.get("question_file"):
            return None
        rows = (row for _, row in read_jsonl(self.question_file, "question file"))
        images = {(str(row["question_id"]), row["text"]): row.get("image", row.get("images")) for row in rows}
        return {key: None if image is None else json.dumps(image) for key, image in images.items()}

    @cached_property
    def left_out(self) -> str | None:
        """Describe the questions that a finished run left out on purpose; None if it answered all."""
        limit, asked = self.record.get("limit"), len(self.answers) + self.skipped
        reasons = [f"{self.skipped} skipped (--skip-bad)"] if self.skipped else []
        if limit is not None and limit <= asked and (self._questions is None or asked < len(self._questions)):
            reasons.insert(0, f"only the first {asked} of the file (--limit)")
        return ", ".join(reasons) or None

    @property
    def partial(self) -> bool:
        """Whether questions of the file have no answer: an unfinished run, --limit or --skip-bad."""
        return bool(self.problem or self.left_out)


def find_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """Read all runs that `paths` name; of a folder, those anywhere inside it, sorted by path.

    A chunk's answers or run file is read alone; a folder merges its chunks.

    Returns:
        The runs, and one line for each run inside a folder that cannot be read: which, and why.

    Raises:
        UserError: a path that is not there or holds no run; a run named by its file with a broken run file, or answers
            missing, broken, without prompt, or two to one question.

    """
    chunks: dict[tuple, dict[Path, dict[str, Any]]] = {}
    named: set[Path] = set()
    broken: list[str] = []

    def leave_out(error: UserError, answers: Iterable[Path]) -> None:
        if named.intersection(answers):
            raise error
        broken.append(str(error))

    for path in map(Path, paths):
        folder = path.is_dir()
        files = sorted(path.rglob(f"*{RUN_FILE}")) if folder else [_run_file(path)]
        if not (folder or path.exists() or files[0].exists()):
            raise UserError(f"{path} is not there: give an answers file, a run file or a folder of runs")
        if not files:
            raise UserError(f"{path} holds no run (no *{RUN_FILE} in it or below)")
        for file in files:
            answers = file.with_name(file.name.removesuffix(RUN_FILE) + ".jsonl")
            named |= set() if folder else {answers.resolve()}
            try:
                record = _record(file)
            except UserError as error:
                leave_out(error, [answers.resolve()])
                continue
            settings = {key: value for key, value in record["settings"].items() if key != "chunk"}
            together = answers.resolve().parent if folder and _chunk(record)[1] > 1 else answers.resolve()
            run = together, _chunk(record)[1], json.dumps(settings, sort_keys=True)
            if answers.resolve() not in map(Path.resolve, chunks.setdefault(run, {})):
                chunks[run][answers] = record
    runs = []
    for one in chunks.values():
        try:
            runs.append(_assemble(one))
        except UserError as error:
            leave_out(error, map(Path.resolve, one))
    return runs, broken


def _run_file(path: Path) -> Path:
    if path.name.endswith(RUN_FILE):
        return path
    return run_file_of(path if path.suffix == ".jsonl" else path.with_name(path.name + ".jsonl"))


def _record(file: Path) -> dict[str, Any]:
    try:
        record = read_run_file(file)
    except UserError:  # what it advises is for a run that is to be continued
        raise UserError(f"{file} is not a run file of llava.eval.run or model_vqa_loader") from None
    if record is None:
        raise UserError(f"{file} is missing: a run is X.jsonl with X{RUN_FILE} beside it")
    return record


def _chunk(record: dict[str, Any]) -> tuple[int, int]:
    """Index and count of a run's chunk."""
    return tuple(record["settings"].get("chunk") or (0, 1))


def _assemble(chunks: dict[Path, dict[str, Any]]) -> Run:
    """Read a run from its chunks: answers file → run file's record."""
    parts = sorted(chunks.items(), key=lambda part: _chunk(part[1]))
    answers: dict[Key, Answer] = {}
    traces: dict[Key, dict[str, Any]] = {}
    for path, record in parts:
        for answer, metadata in _read_answers(path, finished=record.get("state") == "finished"):
            key = answer.key
            if key in answers:
                raise UserError(f"{answer.where} answers the question of {answers[key].where} again")
            answers[key], traces[key] = answer, metadata
    states = ((path, record.get("state", "of unknown state")) for path, record in parts)
    problem = next((f"{path} is {state}" for path, state in states if state != "finished"), None)
    (first, record), count = parts[0], _chunk(parts[0][1])[1]
    if problem is None and len(parts) < count:
        problem = f"{len(parts)} of {count} chunks are there"
    return Run(first, record, answers, traces, sum(len(one.get("skipped", ())) for _, one in parts), problem)


def _read_answers(path: Path, finished: bool) -> Iterator[tuple[Answer, dict[str, Any]]]:
    """Yield the answers in `path` and, of an unfinished run, in its parts, each with its metadata and times."""
    parts = [] if finished else sorted(parts_of(path).glob("*.jsonl"))
    times = read_times(path)
    before: set[Key] = set()
    for file in ([path] if finished or path.is_file() else []) + parts:
        here: set[Key] = set()
        for where, row in read_jsonl(file, "answers file", torn=not finished):
            answer = parse_answer(row, where)
            key = (answer.question_id, answer.asked)
            if key in before:  # in the answers file and in a part: stopped while the parts were put together
                continue
            here.add(key)
            metadata = times.get(key, {}) | (row["metadata"] if isinstance(row.get("metadata"), dict) else {})
            # "kept" is as long as the prompt has visual tokens, and nothing here reads it
            yield answer, {name: value for name, value in metadata.items() if name != "kept"}
        before |= here
