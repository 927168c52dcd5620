"""The comparison itself: choose configs, ask the benchmarks, put the figures together, write the files."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from llava.eval.benchmarks import find_benchmark
from llava.eval.runner.evaluator import Evaluator
from llava.eval.runner.paired import paired_times
from llava.eval.runner.running import Loader
from llava.eval.suite import DENSE
from llava.files import replacing
from llava.model.checkpoint import find_source
from llava.model.preflight import resolve
from llava.model.pruning import PruningConfig

from . import FaceError
from .asking import Asker
from .choosing import METHODS, Chooser, Entry
from .rows import Row, make_row, verdict
from .shown import csv_text, picture

CONTROLS = {"none": {"method": "none"}, "blind": {"method": "vtw", "k": 0}}
"""Beside dense and random: the engine with nothing pruned, and the language model without any visual token."""

Configs = dict[str, tuple[str, float | None, PruningConfig | None]]
"""Name of a run → method, target in percent (None: none), config (None: the untouched model)."""


class Contest:
    """One comparison in its folder; raises `ValueError`, in one line, for what can be seen to fail before it starts."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.out = args, args.out.expanduser()
        self.targets = sorted(set(args.save))
        loader = Loader()
        self.tuning = Asker(args, args.tune_dir.expanduser(), self.out / "tuning", args.tune_limit, loader)
        self.real = Asker(args, args.data_dir.expanduser(), self.out / "answers", args.limit, loader)
        self._check()
        self.chooser = Chooser(self.tuning, self.out / "tuning", args.trials)

    def _check(self) -> None:
        args = self.args
        if args.tune_dir.expanduser().resolve() == args.data_dir.expanduser().resolve():
            raise FaceError("--tune-dir is --data-dir: choose on other questions than those that are compared on")
        folders = [find_benchmark(name).folder for name in args.benchmarks]
        if len(set(folders)) < len(folders):
            raise FaceError("--benchmarks names one twice")
        taken = [*CONTROLS, DENSE, *METHODS, *(name for name, _ in args.config)]
        if len(set(taken)) < len(taken):
            raise FaceError(f"--config: a name is taken; taken are {', '.join([DENSE, *CONTROLS, *METHODS])}")
        source = find_source(os.path.expanduser(args.model_path), "--model-path", {})
        for name, config in args.config:
            try:
                resolve(config, source)
            except ValueError as error:
                raise FaceError(f"config {name!r}: {error}") from None
        tuning = {job.benchmark.name: job.plan.settings for job in self.tuning.jobs()}
        self.settings = {"tuning": tuning, "tune_limit": args.tune_limit, "trials": args.trials}
        self.settings |= {"count": args.count}
        self.real.jobs()

    def run(self) -> dict[str, Any]:
        """Choose, ask, compare; write everything and return the summary."""
        chosen = self._choose()
        configs: Configs = {DENSE: (DENSE, None, None)}
        controls = {name: PruningConfig.from_dict(settings) for name, settings in CONTROLS.items()}
        configs |= {name: (name, None, config) for name, config in [*controls.items(), *self.args.config]}
        for saved in self.targets:
            found = {name: entry for name, entry in chosen[f"{saved:g}"].items() if name in self.args.methods}
            for method, entry in found.items():
                if "config" in entry:
                    configs[f"{method}-{saved:g}"] = (method, saved, PruningConfig.from_dict(entry["config"]))
        devices = set()
        for place, (name, (_, _, config)) in enumerate(configs.items(), start=1):
            print(f"benchmarks, {place} of {len(configs)}: {name}", file=sys.stderr)
            answered = self.real.ask(_file_name(name), config)
            devices |= {run["device"] for run in answered.runs.values()}
        rows = self._rows(configs)
        if self.args.rounds:
            self._time(configs, rows)
        return self._write(rows, chosen, sorted(devices))

    def _choose(self) -> dict[str, dict[str, Entry]]:
        """Return the entries by target and method; those that `configs.json` has are taken from there."""
        path = self.out / "configs.json"
        record = _read(path) if path.is_file() and not self.args.overwrite else None
        if record is not None and record.get("settings") != self.settings:
            raise FaceError(f"{path} was chosen for another model or otherwise; give another --out, or --overwrite")
        if self.args.overwrite:
            (self.out / "tuning" / "influence.npz").unlink(missing_ok=True)
        record = record or {"settings": self.settings, "chosen": {}}
        chosen = record["chosen"]
        print("tuning: dense", file=sys.stderr)
        self.tuning.ask(DENSE, None)
        methods = [name for name in METHODS if name in self.args.methods]
        if {"plan", "divprune-visipruner"} & {*methods} - {"visipruner"} and "visipruner" not in methods:
            methods.insert(0, "visipruner")  # which they are made of
        todo = [(saved, method) for saved in self.targets for method in methods]
        for place, (saved, method) in enumerate(todo, start=1):
            entries = chosen.setdefault(f"{saved:g}", {})
            if method not in entries:
                print(f"tuning, {place} of {len(todo)}: {method} at −{saved:g}%", file=sys.stderr)
                mildest = chosen[f"{self.targets[0]:g}"].get("visipruner")
                entries[method] = self.chooser.choose(method, 1 - saved / 100, entries.get("visipruner"), mildest)
                _write_json(path, record)
            if "config" in entries[method]:
                _write_json(self.out / "configs" / f"{method}-{saved:g}.json", entries[method]["config"])
        return chosen

    def _rows(self, configs: Configs) -> list[Row]:
        dense = self.real.read(DENSE)
        return [
            make_row(name, method, saved, self.real.read(_file_name(name)), dense)
            for name, (method, saved, _) in configs.items()
        ]

    def _time(self, configs: Configs, rows: list[Row]) -> None:
        evaluator = Evaluator(self.args)
        evaluator.__dict__["loaded"] = self.real.loaded
        asked = [job.plan.selected[: self.args.timed_questions] for job in self.real.jobs()]
        batches = [batch for part in asked for batch in evaluator.batches(part)]
        compared = {name: one[2] for name, one in configs.items()}
        times = paired_times(self.real.loaded, batches, compared, baseline=DENSE, rounds=self.args.rounds)
        for row in rows:
            row |= {key: times[row["name"]][key] for key in ("prefill_ms", "speedup", "speedup_range")}

    def _write(self, rows: list[Row], chosen: dict[str, dict[str, Entry]], devices: list[str]) -> dict[str, Any]:
        absent = {
            target: {name: e["absent"] for name, e in entries.items() if "absent" in e and name in self.args.methods}
            for target, entries in chosen.items()
            if float(target) in self.targets
        }
        summary = {
            "model_path": self.args.model_path,
            "device": ", ".join(devices),
            "limit": self.args.limit,
            "targets": self.targets,
            "count": self.args.count,
            "rows": rows,
            "absent": absent,
            "verdicts": [verdict(rows, saved, self.args.points) for saved in self.targets],
        }
        _write_json(self.out / "summary.json", summary)
        (self.out / "table.csv").write_text(csv_text(rows), encoding="utf-8")
        picture(rows, self.out / "accuracy.png", Path(self.args.model_path).expanduser().name, self.args.count)
        return summary


def _file_name(name: str) -> str:
    """A run's file name; of a target with a fraction, without its point."""
    return name.replace(".", "_")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise FaceError(f"{path} is not JSON; delete it, or give --overwrite") from None


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1) + "\n")
