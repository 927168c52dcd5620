"""One run of the evaluation loader: asks the open questions, appends answers, keeps the run file up to date."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

import torch
from tqdm import tqdm

from llava.eval.runner.answering import Answerer
from llava.eval.runner.answers import ELSEWHERE, AnswersError, AnswersFile
from llava.eval.runner.batches import Batch, BatchDataset, Group, group, prepared, share, shares_images
from llava.eval.runner.plan import Plan
from llava.eval.runner.questions import Question, Skipped, refusal
from llava.eval.runner.ranks import Ranks
from llava.eval.runner.runfile import RunFileError, run_file_of, versions, write_run_file
from llava.eval.runner.totals import STAGES, Totals
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.inputs import Inputs, inputs_for
from llava.model.pruning.prefix_cache import Reused
from llava.utils import device_name

SECONDS_BETWEEN_RUN_FILES = 10.0


@dataclass(frozen=True)
class Loaded:
    """A model with its name and its way to take questions."""

    name: str
    model: Any
    inputs: Inputs


class Loader:
    """Loads the model that the first call asks for, and gives the same one to every further call."""

    def __init__(self) -> None:
        self._loaded: Loaded | None = None

    def __call__(self, args: argparse.Namespace, plan: Plan) -> Loaded:
        """Return the model that `args` names, in the plan's dtype; raises what `load_pretrained_model` raises."""
        if self._loaded is None:
            path = os.path.expanduser(args.model_path)
            name = get_model_name_from_path(path)
            tokenizer, model, processor, _ = load_pretrained_model(
                path, args.model_base, name, device=args.device, dtype=plan.dtype
            )
            self._loaded = Loaded(name, model, inputs_for(tokenizer, processor, model.config, args.conv_mode))
        return self._loaded


class Run:
    """One invocation on one question file: asks what is open, appends the answers, keeps the run file up to date.

    `answers` takes this process's answers; `rows` are those that are there already, with their traces; `earlier` is the
    run file that describes them. Of several processes (`ranks`) each asks its share, and the first has the run file.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        command: str,
        plan: Plan,
        rows: Iterable[dict[str, Any]],
        earlier: dict[str, Any] | None,
        ranks: Ranks | None = None,
    ):
        self.args, self.plan, self.ranks = args, plan, ranks or Ranks()
        self.totals = Totals()
        for number, row in enumerate(rows, start=1):
            self._count(row, f"{plan.answers_file}:{number}")
        self.skipped = list(plan.skipped)
        self.earlier = (earlier or {}).get("sessions", [])
        self.session: dict[str, Any] = {
            "command": command,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "questions": 0,
            "seconds": 0.0,
        }
        self.record: dict[str, Any] = earlier or {}
        self._clock = time.monotonic()
        self._written = -math.inf
        self._waited = 0.0

    def ask(self, todo: Sequence[Question], answers: AnswersFile, loaded: Loaded) -> None:
        """Answer this process's share of `todo`, in batches by prompt length; leave the run file behind if it fails.

        The caller puts the answers in order and writes the run file as finished.
        """
        args, plan, device = self.args, self.plan, loaded.model.device
        self._asking = time.monotonic()
        groups = group(plan.selected, set(todo), args.batch_size, loaded.inputs)
        groups = share(groups, self.ranks.index, self.ranks.count)
        self._open = {question.key for question in todo}
        mine = sum(question.key in self._open for one in groups for question in one.questions)
        workers = args.workers
        if workers is None:  # on CPU they would take the cores that the model runs on
            workers = 0 if device.type == "cpu" else min(4, _cores(), len(groups))
        self.session |= {"device": str(device), "device_name": device_name(device), "workers": workers}
        self.session |= {"threads": torch.get_num_threads(), "batch_size": args.batch_size, "seed": args.seed}
        self.session["versions"] = versions()
        if args.overwrite:
            answers.clear()
        self.write("running")
        batches = prepared(BatchDataset(groups, loaded.inputs), workers)
        room = args.prefix_cache_bytes if self._reuses(groups) else None
        try:
            with Answerer(loaded.model, loaded.inputs, loaded.name, plan.config, plan.generation, room) as answerer:
                self._answerer = answerer
                with self._bar(len(todo), mine) as bar:
                    for batch in self._waiting_for(batches):
                        self.ranks.check()
                        bar.update(self._keep(batch, answers, *answerer.answer(batch)))
                        bar.set_postfix_str(f"{self.totals.mean_kept:.1f} visual tokens kept", refresh=False)
            self._take_times()
        except BaseException:
            self.interrupt()
            raise

    def interrupt(self) -> None:
        """Leave the run file of a run that ends early, while what ended it is on its way up."""
        with suppress(RunFileError):  # of a full disk, say: what is raised already tells it
            self.write("interrupted")

    def _reuses(self, groups: Sequence[Group]) -> bool:
        return shares_images(groups) if self.args.reuse_prefix is None else self.args.reuse_prefix

    def _waiting_for(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def _keep(self, batch: Batch, answers: AnswersFile, lines: list[dict[str, Any]], bad: list[Skipped]) -> int:
        """Append the answers to questions that were open, and return how many questions are done with."""
        lines = [line for line in lines if (str(line["question_id"]), line["prompt"]) in self._open]
        answers.append(lines)
        self.session["questions"] += len(lines)
        for line in lines:
            self._count(line, "answer")
        if bad and not self.args.skip_bad:
            raise refusal(bad[0])
        self.skipped += bad
        if time.monotonic() - self._written > SECONDS_BETWEEN_RUN_FILES:
            self._take_times()
            self.write("running")
        return len(lines) + len(bad)

    def _take_times(self) -> None:
        """Note where this session's time went: waiting for prepared batches, the model's stages, and the rest."""
        seconds = {"loading": self._waited} | {stage: self._answerer.spent[stage] / 1000 for stage in STAGES}
        whole = time.monotonic() - self._asking
        seconds["rest"] = max(0.0, whole - sum(seconds.values()))
        self.session["time"] = {stage: round(spent, 3) for stage, spent in seconds.items()}
        self.session["time_shares"] = {stage: round(spent / whole, 4) for stage, spent in seconds.items()}
        reused = self._answerer.reused
        if reused is not None:
            self.session["prefix_reuse"] = reused.to_dict()
        if self._answerer.halved:
            self.session["out_of_memory"] = self._answerer.halved

    def finish(
        self, rows: Iterable[dict[str, Any]], sessions: Sequence[dict[str, Any]], skipped: list[Skipped]
    ) -> None:
        """Write the run file of a finished run from all of its answers and what every process says of itself."""
        self.totals, self.skipped = Totals(), skipped
        for number, row in enumerate(rows, start=1):
            self._count(row, f"{self.plan.answers_file}:{number}")
        if len(sessions) > 1:
            alike = ("command", "started", "versions", "batch_size", "seed", "threads", "workers")
            self.session["ranks"] = [
                {key: value for key, value in session.items() if key not in alike} for session in sessions
            ]
            self.session["questions"] = sum(session["questions"] for session in sessions)
            reused = [session["prefix_reuse"] for session in sessions if "prefix_reuse" in session]
            if reused:
                names = [field.name for field in fields(Reused)]
                self.session["prefix_reuse"] = Reused(*(sum(one[name] for one in reused) for name in names)).to_dict()
            spent = [session["time"] for session in sessions if "time" in session]
            if spent:
                time_of = {stage: round(sum(one[stage] for one in spent), 3) for stage in spent[0]}
                whole = sum(time_of.values()) or 1.0
                self.session["time"] = time_of
                self.session["time_shares"] = {stage: round(part / whole, 4) for stage, part in time_of.items()}
        self.write("finished")

    def _count(self, row: dict[str, Any], where: str) -> None:
        try:
            self.totals.add(row["metadata"])
        except (KeyError, TypeError) as error:
            raise AnswersError(
                f"{where} has no trace in its metadata ({error}); start anew with --overwrite, or {ELSEWHERE}"
            ) from None

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
        self.session["seconds"] = round(self._written - self._clock, 3)
        sessions = [*self.earlier, self.session] if self.session["questions"] or not self.earlier else self.earlier
        shown = {key: value for key, value in sessions[-1].items() if key not in ("questions", "seconds", "started")}
        skipped = [{"where": bad.question.where, "reason": bad.reason} for bad in self.skipped]
        self.record = {
            "state": state,
            "answers_file": str(self.plan.answers_file),
            "question_file": str(self.args.question_file),
            "image_folder": str(self.args.image_folder),
            "model_path": str(self.args.model_path),
            "model_base": self.args.model_base,
            "limit": self.args.limit,
            **shown,
            "settings": self.plan.settings,
            "filled_in": self.plan.filled_in,
            "totals": self.totals.to_dict() | {"skipped": len(skipped)},
            "skipped": skipped,
            "sessions": sessions,
        }
        if self.ranks.index == 0:
            write_run_file(run_file_of(self.plan.answers_file), self.record)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(record: dict[str, Any]) -> str:
    """The run in one line for people."""
    totals = record["totals"]
    count = max(totals["questions"], 1)
    spent = totals["milliseconds"]
    reused = record.get("prefix_reuse")
    again = f", {100 * reused['share']:.0f}% of the last session's tokens reused" if reused else ""
    return (
        f"{totals['questions']} answers in {record['answers_file']}, {totals['skipped']} skipped; "
        f"{totals['tokens_mean']:.1f} of {totals['prompt_tokens'] / count:.1f} tokens a layer, "
        f"FLOPs saved {100 * totals['flops_saved']:.1f}%, "
        f"a question: prefill {spent['prefill'] / count:.1f} ms, decode {spent['decode'] / count:.1f} ms{again}"
    )
