"""Evaluate configs on the benchmarks of one folder (tuning questions, or the real ones)."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava.eval.benchmarks import Benchmark
from llava.eval.runner.batches import Batch
from llava.eval.runner.costs import Costs
from llava.eval.runner.evaluator import DENSE, Evaluator
from llava.eval.runner.run import Run
from llava.eval.runner.session import Plan
from llava.model.pruning import PruningConfig
from llava.model.pruning.families import shape_of
from llava.model.pruning.flops import DecoderShape

Count = Literal["all", "visual"]
"""Which tokens FLOPs are counted over: all of the prompt, or the visual ones alone, as papers of this field do."""
FLOPS: dict[Count, str] = {"all": "flops_all_tokens", "visual": "flops"}
"""What `Costs` calls them."""


@dataclass(frozen=True)
class Answered:
    """One config on a set of benchmarks: accuracy of each in percent, prefill FLOPs as a share of dense, device."""

    accuracy: dict[str, float]
    share: float
    device: str


class BenchmarkSet:
    """The benchmarks of `data_dir`, with answers in `out`; runs resume and are never repeated.

    limit: only the first questions of each, or None; count: the tokens whose FLOPs count
    """

    def __init__(
        self,
        evaluator: Evaluator,
        benchmarks: Sequence[Benchmark],
        data_dir: Path,
        out: Path,
        limit: int | None,
        count: Count,
    ):
        self.evaluator, self.benchmarks = evaluator, benchmarks
        self.data_dir, self.out, self.limit, self.count = data_dir, out, limit, count
        self._answered: dict[str, Answered] = {}

    def plans(self, name: str, config: PruningConfig | None) -> list[Plan]:
        """Plan the run of every benchmark; raises `UserError` for what can be seen to fail."""
        return [
            self.evaluator.plan(one, one.at(self.data_dir), self._file(one, name), config, limit=self.limit)
            for one in self.benchmarks
        ]

    def ask(self, name: str, config: PruningConfig | None) -> Answered:
        """Answer and score all benchmarks; `name` is that of the answers files."""
        if name not in self._answered:
            runs = {}
            for plan in self.plans(name, config):
                print(f"  {name} on {plan.folder}", file=sys.stderr)
                runs[plan.benchmark.name] = self.evaluator.run(plan)
            accuracy = {benchmark: run.scores["accuracy"] for benchmark, run in runs.items()}
            share = costs_of(runs).share(FLOPS[self.count])
            device = next(iter(runs.values())).record.get("device", "unknown")
            self._answered[name] = Answered(accuracy, share, device)
        return self._answered[name]

    def ask_once(self, config: PruningConfig) -> Answered:
        """As `ask`, named by the config, so that each config runs once."""
        return self.ask(_name_of(config), config)

    def runs(self, name: str) -> dict[str, Run]:
        """Read the runs of a name back, by benchmark."""
        return {one.name: Run.read(self._file(one, name)) for one in self.benchmarks}

    def costs(self, config: PruningConfig) -> Costs:
        """Costs of the answers of `ask_once` under a config."""
        return costs_of(self.runs(_name_of(config)))

    def sizes(self) -> list[tuple[int, int]]:
        """(tokens, visual tokens) of every prompt of the dense run that shows an image."""
        traces = [trace for run in self.runs(DENSE).values() for trace in run.traces.values()]
        return [(trace["prompt_tokens"], trace["visual_tokens"]) for trace in traces if trace["visual_tokens"]]

    @property
    def shape(self) -> DecoderShape:
        """The decoder's dimensions."""
        return shape_of(self.evaluator.loaded.model)

    def batches(self, count: int) -> list[Batch]:
        """Prepare `count` questions with an image, evenly spread over the benchmarks, in batches that stand alone."""
        part = -(-count // len(self.benchmarks))
        with_image = [[one for one in plan.selected if one.paths] for plan in self.plans(DENSE, None)]
        return self.evaluator.batches([one for questions in with_image for one in evenly(questions, part)])

    def _file(self, benchmark: Benchmark, name: str) -> Path:
        return self.out / benchmark.name / f"{name}.jsonl"


def costs_of(runs: dict[str, Run]) -> Costs:
    """Total costs of the runs of several benchmarks."""
    return Costs.of(trace for run in runs.values() for trace in run.traces.values())


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """Return `count` evenly spaced items; all if there are fewer."""
    return [items[place * len(items) // count] for place in range(count)] if count < len(items) else list(items)


def _name_of(config: PruningConfig) -> str:
    text = json.dumps(config.to_dict(), sort_keys=True)
    return f"{config.method.rpartition(':')[2]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
