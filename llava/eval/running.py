"""One run of the evaluation loader: asks the open questions, appends answers, keeps the run file up to date."""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from llava.eval.answering import Answerer
from llava.eval.answers import AnswersError, AnswersFile
from llava.eval.batches import Batch, BatchDataset, group, prepared
from llava.eval.plan import Plan
from llava.eval.questions import Question, Skipped, refusal
from llava.eval.runfile import run_file_of, versions, write_run_file
from llava.eval.totals import Totals
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model

SECONDS_BETWEEN_RUN_FILES = 10.0


class Run:
    """One invocation: asks what is open, appends the answers and keeps the run file up to date."""

    def __init__(
        self,
        args: argparse.Namespace,
        command: str,
        plan: Plan,
        answers: AnswersFile,
        earlier: dict[str, Any] | None,
    ):
        self.args, self.plan, self.answers = args, plan, answers
        self.totals = Totals()
        for number, row in enumerate(answers.rows, start=1):
            self._count(row, f"{answers.path}:{number}")
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

    def ask(self, todo: list[Question]) -> None:
        """Load the model, answer `todo` in order, leave the run file behind, whatever happens."""
        args, plan = self.args, self.plan
        path = os.path.expanduser(args.model_path)
        name = get_model_name_from_path(path)
        tokenizer, model, image_processor, _ = load_pretrained_model(
            path, args.model_base, name, device=args.device, dtype=plan.dtype
        )
        groups = group(plan.selected, set(todo), args.batch_size)
        workers = args.workers
        if workers is None:  # on CPU they would take the cores that the model runs on
            workers = 0 if model.device.type == "cpu" else min(4, _cores(), len(groups))
        self.session |= {"device": str(model.device), "device_name": _device_name(model.device), "workers": workers}
        self.session |= {"threads": torch.get_num_threads(), "batch_size": args.batch_size, "seed": args.seed}
        self.session["versions"] = versions()
        if args.overwrite:
            self.answers.clear()
        self.write("running")
        batches = prepared(BatchDataset(groups, tokenizer, image_processor, model.config, args.conv_mode), workers)
        state = "interrupted"
        try:
            with Answerer(model, tokenizer, name, plan.config, plan.generation) as answerer, self._bar(todo) as bar:
                for batch in batches:
                    self._keep(batch, *answerer.answer(batch))
                    bar.set_postfix_str(f"{self.totals.mean_kept:.1f} visual tokens kept", refresh=False)
                    bar.update(len(batch.questions))
            state = "finished"
        finally:
            self.write(state)

    def _keep(self, batch: Batch, lines: list[dict[str, Any]], bad: list[Skipped]) -> None:
        stop = bad and not self.args.skip_bad
        if stop:  # nothing after the bad question, so that answers are in order once it is repaired
            lines = lines[: batch.questions.index(bad[0].question)]
        self.answers.append(lines)
        self.session["questions"] += len(lines)
        for line in lines:
            self._count(line, "answer")
        if stop:
            raise refusal(bad[0])
        self.skipped += bad
        if time.monotonic() - self._written > SECONDS_BETWEEN_RUN_FILES:
            self.write("running")

    def _count(self, row: dict[str, Any], where: str) -> None:
        try:
            self.totals.add(row["metadata"])
        except (KeyError, TypeError) as error:
            raise AnswersError(
                f"{where} has no trace in its metadata ({error}); start anew with --overwrite, "
                "or give another --answers-file"
            ) from None

    def _bar(self, todo: list[Question]) -> tqdm:
        interval = 0.2 if sys.stderr.isatty() else 30  # a log file needs no animation
        total = len(self.plan.selected)
        return tqdm(total=total, initial=total - len(todo), unit="question", mininterval=interval, dynamic_ncols=True)

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
            "totals": self.totals.to_dict() | {"skipped": len(skipped)},
            "skipped": skipped,
            "sessions": sessions,
        }
        write_run_file(run_file_of(self.plan.answers_file), self.record)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe(record: dict[str, Any]) -> str:
    """The run in one line for people."""
    totals = record["totals"]
    count = max(totals["questions"], 1)
    spent = totals["milliseconds"]
    return (
        f"{totals['questions']} answers in {record['answers_file']}, {totals['skipped']} skipped; "
        f"{totals['tokens_mean']:.1f} of {totals['prompt_tokens'] / count:.1f} tokens a layer, "
        f"FLOPs saved {100 * totals['flops_saved']:.1f}%, "
        f"a question: prefill {spent['prefill'] / count:.1f} ms, decode {spent['decode'] / count:.1f} ms"
    )
