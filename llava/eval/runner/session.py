"""`Plan`: one benchmark under one config, checked. `Session`: one invocation that answers its open questions."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from llava.cli import GenerationOptions, ModelOptions, UserError
from llava.eval.benchmarks import Benchmark
from llava.eval.runner.answering import Answerer
from llava.eval.runner.answers_file import AGAIN, AnswersFile
from llava.eval.runner.batches import Batch, BatchDataset, Group, group, prepared, share, shares_images
from llava.eval.runner.costs import STAGES, Costs
from llava.eval.runner.distributed import Ranks
from llava.eval.runner.questions import Question, Skipped
from llava.eval.runner.runfile import run_file_of, versions, write_run_file
from llava.model.loaded import LoadedModel
from llava.model.pruning import PruningConfig
from llava.model.pruning.prefix_cache import CACHE_BYTES, Reused
from llava.utils import device_name

SECONDS_BETWEEN_RUN_FILES = 10.0
SHARED_BY_RANKS = ("command", "started", "versions", "batch_size", "seed", "threads", "workers")


@dataclass(frozen=True)
class Plan:
    """A checked run: returned by `Evaluator.plan`, taken by `Evaluator.run`.

    benchmark, folder:
        what is asked and scored, and the folder of its files
    answers_file:
        where the answers go, a .jsonl; the run file and the times lie beside it
    config:
        the pruning config with every setting filled in; None is the untouched model. `filled_in` are the settings that
        were left open, as the model's depth gives them
    options:
        how the questions are asked; `max_new_tokens` is never None
    known, selected, skipped:
        all questions of the file; those of this run (--limit, the chunk) whose images are there; those left out
    settings:
        what the answers depend on; a run is continued only under the same ones
    visual_schedule:
        the config that the checkpoint was trained with, None without one
    """

    benchmark: Benchmark
    folder: Path
    answers_file: Path
    config: PruningConfig | None
    filled_in: dict[str, Any]
    options: GenerationOptions
    known: list[Question]
    selected: list[Question]
    skipped: list[Skipped]
    settings: dict[str, Any]
    visual_schedule: dict[str, Any] | None = None

    @property
    def question_file(self) -> Path:
        """The benchmark's question file."""
        return self.folder / self.benchmark.questions

    @property
    def images(self) -> Path:
        """The folder that the questions' image paths are relative to."""
        return self.folder / self.benchmark.images


class Session:
    """One invocation in one process, which answers its share of the questions; rank 0 writes the run file.

    `rows` are the answers that are there already, with their traces; `earlier` is the run file that describes them.
    """

    def __init__(
        self,
        plan: Plan,
        model: ModelOptions,
        command: str,
        rows: Sequence[tuple[str, dict[str, Any]]],
        earlier: dict[str, Any] | None,
        ranks: Ranks,
    ):
        self.plan, self.model, self.ranks = plan, model, ranks
        self.costs = costs_of(rows)
        self.skipped = list(plan.skipped)
        self.narrowed = False
        self.limit = plan.options.limit
        if earlier is not None and self.limit is not None:  # a smaller --limit does not make a run smaller
            before = earlier.get("limit")
            self.narrowed = before is None or before > self.limit
            self.limit = before if self.narrowed else self.limit
        self.earlier = (earlier or {}).get("sessions", [])
        self.about: dict[str, Any] = {
            "command": command,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "questions": 0,
            "seconds": 0.0,
        }
        self._clock = time.monotonic()
        self._written = -math.inf
        self._waited = 0.0

    def ask(self, todo: Sequence[Question], answers: AnswersFile, loaded: LoadedModel) -> None:
        """Answer this process's share of `todo`, in batches by prompt length; leave the run file behind if it fails."""
        plan, options, device = self.plan, self.plan.options, loaded.model.device
        self._asking = time.monotonic()
        groups = group(plan.selected, set(todo), options.batch_size, loaded.inputs)
        groups = share(groups, self.ranks.index, self.ranks.count)
        self._open = {question.key for question in todo}
        mine = sum(question.key in self._open for one in groups for question in one.questions)
        workers = options.workers
        if workers is None:  # on CPU they would take the cores that the model runs on
            workers = 0 if device.type == "cpu" else min(4, _cores(), len(groups))
        self.about |= {"device": str(device), "device_name": device_name(device), "workers": workers}
        self.about |= {"threads": torch.get_num_threads(), "batch_size": options.batch_size, "seed": options.seed}
        self.about["versions"] = versions()
        self.write("running")
        batches = prepared(BatchDataset(groups, loaded.inputs, options), workers)
        cache = prefix_cache_bytes(options.prefix_cache, groups)
        try:
            with Answerer(loaded, plan.config, options, cache) as answerer:
                self._answerer = answerer
                with self._bar(len(todo), mine) as bar:
                    for batch in self._waiting_for(batches):
                        self.ranks.check()
                        bar.update(self._keep(batch, answers, *answerer.answer(batch)))
                        bar.set_postfix_str(f"{self.costs.mean_kept:.1f} visual tokens kept", refresh=False)
            self._take_times()
        except BaseException:
            self.interrupt()
            raise

    def interrupt(self) -> None:
        """Write the run file of a run that ends early, while its exception propagates."""
        with suppress(UserError):  # of a full disk, say: what is raised already says it
            self.write("interrupted")

    def _waiting_for(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def _keep(self, batch: Batch, answers: AnswersFile, lines: list[dict[str, Any]], bad: list[Skipped]) -> int:
        """Append the answers to open questions; return how many questions are finished."""
        lines = [line for line in lines if (str(line["question_id"]), line["prompt"]) in self._open]
        answers.append(lines)
        self.about["questions"] += len(lines)
        for line in lines:
            self.costs.add(line["metadata"])
        if bad and not self.plan.options.skip_bad:
            raise bad[0].refusal()
        self.skipped += bad
        if time.monotonic() - self._written > SECONDS_BETWEEN_RUN_FILES:
            self._take_times()
            self.write("running")
        return len(lines) + len(bad)

    def _take_times(self) -> None:
        """Add up this session's time: loading, the model's stages, and the rest."""
        seconds = {"loading": self._waited} | {stage: self._answerer.spent[stage] / 1000 for stage in STAGES}
        whole = time.monotonic() - self._asking
        seconds["rest"] = max(0.0, whole - sum(seconds.values()))
        self._note_times(seconds, whole)
        reused = self._answerer.reused
        if reused is not None:
            self.about["prefix_reuse"] = reused.to_dict()
        if self._answerer.halved:
            self.about["out_of_memory"] = self._answerer.halved

    def _note_times(self, seconds: Mapping[str, float], whole: float) -> None:
        self.about["time"] = {stage: round(spent, 3) for stage, spent in seconds.items()}
        self.about["time_shares"] = {stage: round(spent / (whole or 1.0), 4) for stage, spent in seconds.items()}

    def finish(
        self, rows: Sequence[tuple[str, dict[str, Any]]], sessions: Sequence[dict[str, Any]], skipped: list[Skipped]
    ) -> None:
        """Write the run file of a finished run from all answers and every process's record."""
        self.costs, self.skipped = costs_of(rows), skipped
        if len(sessions) > 1:
            self.about["ranks"] = [
                {key: value for key, value in session.items() if key not in SHARED_BY_RANKS} for session in sessions
            ]
            self.about["questions"] = sum(session["questions"] for session in sessions)
            reused = [session["prefix_reuse"] for session in sessions if "prefix_reuse" in session]
            if reused:
                names = [field.name for field in fields(Reused)]
                self.about["prefix_reuse"] = Reused(*(sum(one[name] for one in reused) for name in names)).to_dict()
            spent = [session["time"] for session in sessions if "time" in session]
            if spent:
                seconds = {stage: sum(one[stage] for one in spent) for stage in spent[0]}
                self._note_times(seconds, sum(seconds.values()))
        self.write("interrupted" if self.narrowed else "finished")

    def _bar(self, todo: int, mine: int) -> tqdm:
        interval = 0.2 if sys.stderr.isatty() else 30  # a log file needs no animation
        alone = self.ranks.count == 1
        before = len(self.plan.selected) - todo if alone else 0
        return tqdm(
            total=before + mine,
            initial=before,
            desc=None if alone else self.ranks.name,
            unit="question",
            mininterval=interval,
            dynamic_ncols=True,
            disable=self.ranks.index > 0,
        )

    def write(self, state: str) -> None:
        """Write the run file: `state` is running, interrupted or finished."""
        self._written = time.monotonic()
        self.about["seconds"] = round(self._written - self._clock, 3)
        sessions = [*self.earlier, self.about] if self.about["questions"] or not self.earlier else self.earlier
        shown = {key: value for key, value in sessions[-1].items() if key not in ("questions", "seconds", "started")}
        skipped = [{"where": bad.question.where, "reason": bad.reason} for bad in self.skipped]
        benchmark = self.plan.benchmark
        self.record = {
            "state": state,
            "answers_file": _absolute(self.plan.answers_file),
            "question_file": _absolute(self.plan.question_file),
            "image_folder": _absolute(self.plan.images),
            "model_path": _absolute(Path(self.model.model_path)),
            "model_base": None if self.model.model_base is None else _absolute(Path(self.model.model_base)),
            "limit": self.limit,
            "benchmark": None if benchmark.judge is None and benchmark.submit is None else benchmark.spec,
            **shown,
            "settings": self.plan.settings,
            "filled_in": self.plan.filled_in,
            **({} if self.plan.visual_schedule is None else {"visual_schedule": self.plan.visual_schedule}),
            "totals": self.costs.to_dict() | {"skipped": len(skipped)},
            "skipped": skipped,
            "sessions": sessions,
        }
        if self.ranks.index == 0:
            write_run_file(run_file_of(self.plan.answers_file), self.record)


def prefix_cache_bytes(given: str, groups: Sequence[Group]) -> int | None:
    """The prefix cache's size for --prefix-cache; None without one."""
    if given == "auto":
        return CACHE_BYTES if shares_images(groups) else None
    return None if given == "off" else int(given)


def costs_of(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Costs:
    """Sum the costs of answers; `UserError` for one without a trace."""
    costs = Costs()
    for where, row in rows:
        try:
            costs.add(row["metadata"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{where} has no trace in its metadata ({error}); {AGAIN}") from None
    return costs


def _absolute(path: Path) -> str:
    """Return an absolute path; a hub name is unchanged."""
    path = path.expanduser()
    return str(path.absolute() if path.exists() else path)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
