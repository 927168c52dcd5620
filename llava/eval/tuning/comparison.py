"""The comparison of methods: choose configs, run the benchmarks, collect figures, write files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.cli import UserError
from llava.eval.benchmarks import find_benchmarks
from llava.eval.runner.evaluator import DENSE, Evaluator, named_configs
from llava.eval.runner.paired import paired_times
from llava.files import write_json
from llava.model.pruning import PruningConfig

from .benchmark_set import BenchmarkSet
from .choosing import Chooser, Entry, schedules
from .rows import Failed, Row, csv_text, draw, failed_by, make_row, verdict

if TYPE_CHECKING:
    from llava.eval.compare_methods import Options

CONTROL = "downsample"
"""The method whose failures are scored by themselves."""
CONTROLS = {"none": {"method": "none"}, "blind": {"method": "vtw", "k": 0}}
"""Beside dense and random: the engine with nothing pruned, and the language model without any visual token."""

Configs = dict[str, tuple[str, float | None, PruningConfig | None]]
"""Name of a run → method, target in percent (None: none), config (None: the untouched model)."""


class MethodComparison:
    """One comparison in its folder; `UserError` for bad options before it starts.

    methods: by the name in tables: names of `compare_methods.METHODS`, or "path/to/file.py:Class" of the user's own
    """

    def __init__(self, options: Options, methods: Mapping[str, str], command: str):
        self.options, self.methods, self.out = options, methods, options.out.expanduser()
        self.targets = sorted(set(options.saving))
        tune_dir, data_dir = options.tune_dir.expanduser(), options.data_dir.expanduser()
        if tune_dir.resolve() == data_dir.resolve():
            raise UserError("--tune-dir is --data-dir: choose on other questions than those that are compared on")
        self.beside = named_configs(options.config)
        if taken := {*CONTROLS, *methods} & {*self.beside}:
            raise UserError(f"--config: a name is taken: {', '.join(sorted(taken))}")
        for name, reference in methods.items():
            if ":" in reference:
                own = schedules(reference, 12)
                if not own:
                    raise UserError(f"--methods {reference}: {name}.schedules() is empty (docs/methods.md)")
                own[0].with_budget(1.0, 12, 144)  # raises where the class has none
        benchmarks = find_benchmarks(",".join(options.benchmark))
        for one in benchmarks:
            if one.judge is None:
                raise UserError(f"{one.title} has no references to score with; methods are compared by their accuracy")
        evaluator = Evaluator(options, command)
        count, out = options.count, self.out
        self.tuning = BenchmarkSet(evaluator, benchmarks, tune_dir, out / "tuning", options.tune_limit, count)
        self.real = BenchmarkSet(evaluator, benchmarks, data_dir, out / "answers", options.limit, count)
        self.fixed: Configs = {DENSE: (DENSE, None, None)}
        controls = {name: PruningConfig.from_dict(settings) for name, settings in CONTROLS.items()}
        self.fixed |= {name: (name, None, config) for name, config in {**controls, **self.beside}.items()}
        settings = {plan.benchmark.name: plan.settings for plan in self.tuning.plans(DENSE, None)}
        self.settings = {"tuning": settings, "tune_limit": options.tune_limit, "trials": options.trials}
        self.settings |= {"count": options.count}
        for name, (_, _, config) in self.fixed.items():
            try:
                self.real.plans(name, config)
            except ValueError as error:
                raise UserError(f"config {name!r}: {error}" if name in self.beside else str(error)) from None
        self.record = self._read_record()
        self.chooser = Chooser(self.tuning, self.out / "tuning", options.trials)

    def _read_record(self) -> dict[str, Any]:
        """Return the configs already chosen, from `configs.json`."""
        path = self.out / "configs.json"
        if not path.is_file() or self.options.overwrite:
            return {"settings": self.settings, "chosen": {}}
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{path} is not JSON; delete it, or give --overwrite") from None
        if record.get("settings") != self.settings:
            raise UserError(f"{path} was chosen for another model or otherwise; give another --out, or --overwrite")
        return record

    def run(self) -> dict[str, Any]:
        """Choose configs, run the benchmarks, write all files and return the summary."""
        chosen = self._choose()
        configs = dict(self.fixed)
        for saved in self.targets:
            for method in self.methods:
                entry = chosen[f"{saved:g}"][method]
                if "config" in entry:
                    configs[f"{method}-{saved:g}"] = (method, saved, PruningConfig.from_dict(entry["config"]))
        devices = set()
        for place, (name, (_, _, config)) in enumerate(configs.items(), start=1):
            print(f"benchmarks, {place} of {len(configs)}: {name}", file=sys.stderr)
            devices.add(self.real.ask(_file_name(name), config).device)
        dense = self.real.runs(DENSE)
        rows = [
            make_row(name, method, saved, self.real.runs(_file_name(name)), dense)
            for name, (method, saved, _) in configs.items()
        ]
        if self.options.rounds:
            self._time(configs, rows)
        return self._write(rows, self._failed(configs), chosen, sorted(devices))

    def _failed(self, configs: Configs) -> dict[str, Failed]:
        """Return what each config scores on the questions that the control of its target fails, by target."""
        found = {}
        for saved in self.targets:
            control = f"{CONTROL}-{saved:g}"
            names = [name for name, (_, target, _) in configs.items() if target in (None, saved) and name != control]
            if control in configs:
                runs = {name: self.real.runs(_file_name(name)) for name in names}
                found[f"{saved:g}"] = failed_by(self.real.runs(_file_name(control)), runs)
        return found

    def _choose(self) -> dict[str, dict[str, Entry]]:
        """Return the entries by target and method; those that `configs.json` has are taken from there."""
        if self.options.overwrite:
            (self.out / "tuning" / "influence.npz").unlink(missing_ok=True)
        chosen = self.record["chosen"]
        print("tuning: dense", file=sys.stderr)
        self.tuning.ask(DENSE, None)
        methods = dict(self.methods)
        if {"plan", "divprune-visipruner"} & {*methods}:  # which are made of it, and come after it
            methods = {"visipruner": "visipruner"} | methods
        todo = [(saved, method) for saved in self.targets for method in methods]
        for place, (saved, method) in enumerate(todo, start=1):
            entries = chosen.setdefault(f"{saved:g}", {})
            if method not in entries:
                print(f"tuning, {place} of {len(todo)}: {method} at −{saved:g}%", file=sys.stderr)
                mildest = chosen[f"{self.targets[0]:g}"].get("visipruner")
                budget = 1 - saved / 100
                entries[method] = self.chooser.choose(methods[method], budget, entries.get("visipruner"), mildest)
                write_json(self.out / "configs.json", self.record, indent=1)
            if "config" in entries[method]:
                write_json(self.out / "configs" / f"{method}-{saved:g}.json", entries[method]["config"], indent=1)
        return chosen

    def _time(self, configs: Configs, rows: list[Row]) -> None:
        evaluator, count = self.real.evaluator, self.options.timed_questions
        plans = self.real.plans(DENSE, None)
        batches = [batch for plan in plans for batch in evaluator.batches(plan.selected[:count])]
        timed = {name: config for name, (_, _, config) in configs.items()}
        times = paired_times(evaluator.loaded, batches, timed, baseline=DENSE, rounds=self.options.rounds)
        for row in rows:
            row |= {key: times[row["name"]][key] for key in ("prefill_ms", "speedup", "speedup_range")}

    def _write(
        self, rows: list[Row], failed: dict[str, Failed], chosen: dict[str, dict[str, Entry]], devices: list[str]
    ) -> dict[str, Any]:
        options, targets = self.options, [f"{saved:g}" for saved in self.targets]
        absent = {
            target: {name: chosen[target][name]["absent"] for name in self.methods if "absent" in chosen[target][name]}
            for target in targets
        }
        summary = {
            "model_path": options.model_path,
            "device": ", ".join(devices),
            "limit": options.limit,
            "targets": self.targets,
            "count": options.count,
            "rows": rows,
            "failed": failed,
            "absent": absent,
            "verdicts": [verdict(rows, saved, options.points) for saved in self.targets],
        }
        write_json(self.out / "summary.json", summary, indent=1)
        (self.out / "table.csv").write_text(csv_text(rows), encoding="utf-8")
        title = Path(options.model_path).expanduser().name
        self.plot = options.save(draw(rows, title, options.count), self.out / "accuracy")
        return summary


def _file_name(name: str) -> str:
    """Return a run's file name: that of a target with a fraction has no point."""
    return name.replace(".", "_")
