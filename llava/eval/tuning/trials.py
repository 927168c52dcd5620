"""Trials: a config answers the samples, and stops as soon as too many answers differ from dense."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.cli import GenerationOptions
from llava.eval.metrics.intervals import Key
from llava.eval.runner.answering import Answerer
from llava.eval.runner.batches import Batch
from llava.eval.runner.costs import Costs
from llava.model.loaded import LoadedModel
from llava.model.pruning import PruningConfig


class Trials:
    """Runs configs on the samples; every trial is a line of `path` and is never repeated.

    dense: the untouched model's answers; allowed: how many may differ from them
    """

    def __init__(
        self,
        path: Path,
        loaded: LoadedModel,
        batches: Sequence[Batch],
        dense: Mapping[Key, str],
        allowed: int,
        generation: GenerationOptions,
    ):
        self.path, self.loaded, self.batches, self.dense = path, loaded, list(batches), dense
        self.allowed, self.generation = allowed, generation
        self.done = {_key(row["config"]): row for row in read_trials(path)}
        self._tried: dict[str, dict[str, Any]] = {}
        self._broken: Counter[int] = Counter()
        self.bar = tqdm(desc="trials", unit="config", dynamic_ncols=True)

    @property
    def tried(self) -> list[dict[str, Any]]:
        """The trials of this search, in order, each config once."""
        return list(self._tried.values())

    def __call__(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the trial of a config.

        `asked`, `equal`: number of questions, and of answers equal to dense; `passed`: all questions were answered, and
        few enough differ; `flops`: their prefill FLOPs over all tokens as a share of dense.
        """
        config = PruningConfig.from_dict(settings).to_dict()
        key = _key(config)
        if key not in self.done:
            row = self._run(config)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.done[key] = row
        row = self.done[key]
        self._broken.update(row["broken_batches"])
        self._tried[key] = row
        passed = [one["flops"] for one in self._tried.values() if one["passed"]]
        best = f"{100 * min(passed):.1f}% of dense FLOPs" if passed else "none passed"
        self.bar.set_postfix_str(best, refresh=False)
        self.bar.update(len(self._tried) - self.bar.n)
        return row

    def _run(self, config: dict[str, Any]) -> dict[str, Any]:
        asked, equal, costs, broken_batches = 0, 0, Costs(), []
        # batches that broke earlier configs come first: a bad config is found out early
        order = sorted(range(len(self.batches)), key=lambda place: -self._broken[place])
        loaded, pruning = self.loaded, PruningConfig.from_dict(config)
        with Answerer(loaded, pruning, self.generation) as answerer:
            for place in order:
                lines, _ = answerer.answer(self.batches[place])
                same = sum(
                    line["text"].strip() == self.dense[str(line["question_id"]), line["prompt"]] for line in lines
                )
                asked, equal = asked + len(lines), equal + same
                for line in lines:
                    costs.add(line["metadata"])
                if same < len(lines):
                    broken_batches.append(place)
                if asked - equal > self.allowed:
                    break
        return {
            "config": config,
            "asked": asked,
            "equal": equal,
            "passed": asked - equal <= self.allowed,
            "flops": costs.flops_share,
            "broken_batches": broken_batches,
        }


def _key(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def read_trials(path: Path) -> list[dict[str, Any]]:
    """Return the trials in `path`; a half-written last line is cut off."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
    return [json.loads(line) for line in content[:end].splitlines()]
