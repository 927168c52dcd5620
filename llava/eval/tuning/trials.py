"""Trials: a config asked for real on the samples, stopped as soon as too many answers differ from the dense ones."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.runner.answering import Answerer, Generation
from llava.eval.runner.batches import Batch
from llava.eval.runner.running import Loaded
from llava.model.pruning import PruningConfig

Key = tuple[str, str]


class Trials:
    """Asks configs on the samples; every trial is a line of `path`, and none is run twice.

    allowed: how many answers may differ from `dense`, the untouched model's, by (question id, prompt)
    """

    def __init__(
        self,
        path: Path,
        loaded: Loaded,
        batches: Sequence[Batch],
        dense: Mapping[Key, str],
        allowed: int,
        how: Generation,
    ):
        self.path, self.loaded, self.batches, self.dense, self.allowed, self.how = (
            path,
            loaded,
            list(batches),
            dense,
            allowed,
            how,
        )
        self.done = {json.dumps(row["config"], sort_keys=True): row for row in _read(path)}
        self._broken: Counter[int] = Counter()

    def run(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return what came of a config.

        `asked`, `equal`: questions, and those answered as dense; `passed`: all were asked, and few enough differ;
        `flops`: prefill FLOPs of those asked as a share of dense, all tokens.
        """
        config = PruningConfig.from_dict(settings).to_dict()
        row = self.done.get(json.dumps(config, sort_keys=True))
        if row is None:
            row = self._run(config)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.done[json.dumps(config, sort_keys=True)] = row
        self._broken.update(row["broken_batches"])
        return row

    def _run(self, config: dict[str, Any]) -> dict[str, Any]:
        asked, equal, cost, dense_cost, broken_batches = 0, 0, 0.0, 0.0, []
        # what broke earlier configs comes first: a bad one is found out early
        order = sorted(range(len(self.batches)), key=lambda place: -self._broken[place])
        pruning = PruningConfig.from_dict(config)
        with Answerer(self.loaded, pruning, self.how) as answerer:
            for place in order:
                lines, _ = answerer.answer(self.batches[place])
                same = sum(line["text"].strip() == self.dense[_key(line)] for line in lines)
                asked, equal = asked + len(lines), equal + same
                cost += sum(line["metadata"]["flops_all_tokens"] for line in lines)
                dense_cost += sum(line["metadata"]["dense_flops_all_tokens"] for line in lines)
                if same < len(lines):
                    broken_batches.append(place)
                if asked - equal > self.allowed:
                    break
        return {
            "config": config,
            "asked": asked,
            "equal": equal,
            "passed": asked - equal <= self.allowed,
            "flops": cost / dense_cost,
            "broken_batches": broken_batches,
        }


def _key(line: Mapping[str, Any]) -> Key:
    return str(line["question_id"]), line["prompt"]


def _read(path: Path) -> list[dict[str, Any]]:
    """The trials that are there; a half-written last line is cut off."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
    return [json.loads(line) for line in content[:end].splitlines()]
