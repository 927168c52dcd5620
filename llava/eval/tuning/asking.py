"""Asking: one config on the tuning questions or on the benchmarks, by the evaluation loader; every run resumes."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llava.eval.benchmarks import find_benchmark
from llava.eval.results.runs import EvalRun, read_run
from llava.eval.runner.batches import Batch, BatchDataset, group
from llava.eval.runner.jobs import Job
from llava.eval.runner.running import Loaded, Loader
from llava.eval.runner.totals import Totals
from llava.eval.suite import DENSE, job_of, run_one
from llava.model.pruning import PruningConfig
from llava.model.pruning.families import family_of
from llava.model.pruning.flops import DecoderShape

from . import Count

FLOPS: dict[Count, str] = {"all": "flops_all_tokens", "visual": "flops"}
"""What an answers file calls them."""


@dataclass(frozen=True)
class Answered:
    """A config on a set of benchmarks: accuracy of each in percent, prefill FLOPs as a share of dense, its runs."""

    accuracy: dict[str, float]
    share: float
    runs: dict[str, dict[str, Any]]

    @property
    def mean(self) -> float:
        """Accuracy, mean of the benchmarks."""
        return sum(self.accuracy.values()) / len(self.accuracy)


class Asker:
    """Asks the benchmarks of one folder (the tuning questions, or the real ones), answers in a folder of its own.

    args: what `llava.eval.suite.run_one` reads, and `count`, over which tokens FLOPs are
    loader: shared, so that the model is loaded once
    """

    def __init__(self, args: argparse.Namespace, data_dir: Path, out: Path, limit: int | None, loader: Loader):
        self.args = argparse.Namespace(**vars(args) | {"out": str(out), "limit": limit})
        self.folders = [data_dir / find_benchmark(name).folder for name in args.benchmarks]
        self.out, self.loader = out, loader
        self._answered: dict[str, Answered] = {}

    def jobs(self) -> list[Job]:
        """The dense run of each benchmark, checked; raises `ValueError` for files or a model that are not there."""
        return [job_of(self.args, folder, DENSE, None) for folder in self.folders]

    def ask(self, name: str, config: PruningConfig | None) -> Answered:
        """Answer and score all benchmarks; what is answered already is not asked again."""
        if name in self._answered:  # also with --overwrite, which is meant for what earlier commands left
            return self._answered[name]
        runs = {}
        for folder in self.folders:
            print(f"  {name} on {folder}", file=sys.stderr)
            runs[folder.name] = run_one(self.args, folder, name, config, self.loader)
        totals = [run["totals"] for run in runs.values()]
        key = FLOPS[self.args.count]
        flops, dense = (sum(part[name] for part in totals) for name in (key, f"dense_{key}"))
        accuracy = {name: run["score"]["accuracy"] for name, run in runs.items()}
        self._answered[name] = Answered(accuracy, flops / dense, runs)
        return self._answered[name]

    def ask_once(self, config: PruningConfig) -> Answered:
        """As `ask`, under a name made of the config: the same config is asked once, whoever asks."""
        return self.ask(_name_of(config), config)

    def read(self, name: str) -> dict[str, EvalRun]:
        """Read the runs of a name back, by benchmark."""
        return {
            folder.name: read_run(self.out / find_benchmark(folder.name).name / f"{name}.jsonl")
            for folder in self.folders
        }

    def totals(self, config: PruningConfig) -> Totals:
        """Sums over the traces of a config that `ask_once` asked."""
        totals = Totals()
        for run in self.read(_name_of(config)).values():
            for trace in run.traces.values():
                totals.add(trace)
        return totals

    def sizes(self) -> list[tuple[int, int]]:
        """(tokens, visual tokens) of every prompt of the dense run that shows an image."""
        traces = [trace for run in self.read(DENSE).values() for trace in run.traces.values()]
        return [(trace["prompt_tokens"], trace["visual_tokens"]) for trace in traces if trace["visual_tokens"]]

    @cached_property
    def loaded(self) -> Loaded:
        """The model."""
        job = self.jobs()[0]
        return self.loader(job.args, job.plan)

    @property
    def shape(self) -> DecoderShape:
        """The decoder's dimensions."""
        return DecoderShape.of(family_of(self.loaded.model).decoder(self.loaded.model).config)

    def batches(self, count: int) -> list[Batch]:
        """Prepare `count` questions with an image, evenly spread over the benchmarks, in batches that stand alone."""
        shown = []
        for job in self.jobs():
            asked = [question for question in job.plan.selected if question.path is not None]
            shown += _evenly(asked, -(-count // len(self.folders)))
        groups = group(shown, set(shown), self.args.batch_size, self.loaded.inputs)
        dataset = BatchDataset([replace(one, unit=place) for place, one in enumerate(groups)], self.loaded.inputs)
        return [dataset[place] for place in range(len(dataset))]


def _evenly(items: Sequence[Any], count: int) -> list[Any]:
    return [items[place * len(items) // count] for place in range(count)] if count < len(items) else list(items)


def _name_of(config: PruningConfig) -> str:
    text = json.dumps(config.to_dict(), sort_keys=True)
    return f"{config.method}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
