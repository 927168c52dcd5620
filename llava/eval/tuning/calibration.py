"""One calibration in its folder; every step leaves a file behind, and is not repeated when the file is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.cli import UserError
from llava.eval.benchmarks import question_set
from llava.eval.runner.evaluator import DENSE, Evaluator, named_configs
from llava.eval.runner.questions import read_questions, require_images
from llava.eval.runner.run import Run
from llava.eval.runner.runfile import fingerprint
from llava.eval.runner.session import Plan
from llava.files import write_json
from llava.model.pruning import PruningConfig
from llava.model.pruning.families import shape_of

from . import report
from .candidates import Space
from .recording import SCALES, Recording, record, scales_of, transfer
from .samples import held_out_agreement, max_disagreements, split, write_questions
from .search import cheapest, with_shallow
from .trials import Trials

if TYPE_CHECKING:
    from llava.eval.calibrate import Options

CALIBRATED = "calibrated"
OWN_SETTINGS = ("samples", "confirm", "held_out", "agreement", "max_new_tokens", "seed", "scale", "dtype", "conv_mode")


class Calibration:
    """One calibration: checked on construction, before the model loads; `run` does the steps.

    Raises `ValueError`, one line: questions or images that are missing or too few, a model or config that does not fit,
    a folder with a calibration of other settings.
    """

    def __init__(self, options: Options, command: str):
        self.options, self.command = options, command
        self.out = (options.out or Path("runs/calibrate") / Path(options.model_path).expanduser().name).expanduser()
        self.others = [_read_record(Path(path)) for path in options.compare]
        self.beside = named_configs(options.config)
        if CALIBRATED in self.beside:
            raise UserError(f"--config: the name {CALIBRATED!r} is taken by the config that is searched for")
        questions = read_questions(options.questions, options.images)
        places = split(questions, options.samples, options.confirm, options.held_out, options.seed)
        self.parts = dict(
            zip(("samples", "confirm", "heldout"), ([questions[n] for n in p] for p in places), strict=True)
        )
        _, missing = require_images([one for part in self.parts.values() for one in part], skip_bad=True)
        if missing:
            first = missing[0]
            raise UserError(f"{first.question.where}: {first.reason}; --images is the folder that paths begin in")
        self.choosing = [part for part in ("samples", "confirm") if self.parts[part]]
        self.asked = sum(len(self.parts[part]) for part in self.choosing)
        self.allowed = max_disagreements(self.asked, options.agreement)
        self.evaluator = Evaluator(options, command)
        self._prepare()

    def _prepare(self) -> None:
        """Make the folder, write the questions and plan all runs; refuse a folder of another calibration."""
        options, path = self.options, self.out / "settings.json"
        settings = {key: getattr(options, key) for key in OWN_SETTINGS}
        settings |= {"questions": fingerprint(Path(options.questions).expanduser())[:16]}
        done = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and not options.overwrite else {}
        if changed := [key for key in settings if done and done.get(key) != settings[key]]:
            changes = "; ".join(f"{key}: {done.get(key)}, now {settings[key]}" for key in changed)
            raise UserError(f"{self.out} was made with other settings ({changes}); give another --out, or --overwrite")
        self.out.mkdir(parents=True, exist_ok=True)
        for part, questions in self.parts.items():
            write_questions(self.out / f"{part}.jsonl", questions)
        self.dense = {part: self._plan(part, DENSE, None) for part in (*self.choosing, "heldout")}
        self.plans = {name: self._plan("heldout", name, config) for name, config in self.beside.items()}
        if options.overwrite:
            for name in ("trials.jsonl", "influence.npz"):
                (self.out / name).unlink(missing_ok=True)
        write_json(path, settings, indent=1)

    def _plan(self, part: str, name: str, config: PruningConfig | None) -> Plan:
        questions = question_set(self.out / f"{part}.jsonl", self.options.images, name=part)
        return self.evaluator.plan(questions, self.out, self.out / part / f"{name}.jsonl", config)

    def run(self) -> dict[str, Any]:
        """Do all steps and return the record, as `calibration.json` has it."""
        dense = {part: self._run(self.dense[part]) for part in self.choosing}
        batches = {part: self.evaluator.batches(self.dense[part].selected) for part in self.choosing}
        loaded, path = self.evaluator.loaded, self.out / "influence.npz"
        recording = Recording.read(path) if path.is_file() else record(path, loaded, batches["samples"])
        trials = Trials(
            self.out / "trials.jsonl",
            loaded,
            [batch for part in batches.values() for batch in part],
            {key: answer.text.strip() for run in dense.values() for key, answer in run.answers.items()},
            self.allowed,
            self.dense["samples"].options,
        )
        shape = shape_of(loaded.model)
        with trials.bar:
            config = self._search(Space(recording, shape, self.options.scale), trials)
        write_json(self.out / "pruning.json", config, indent=1)
        self.plans = {CALIBRATED: self._plan("heldout", CALIBRATED, PruningConfig.from_dict(config))} | self.plans
        before = self._run(self.dense["heldout"])
        claims = {name: held_out_agreement(before, self._run(plan)) for name, plan in self.plans.items()}
        result = {
            "model": Path(self.options.model_path).expanduser().name,
            "agreement": self.options.agreement,
            "samples": len(self.parts["samples"]),
            "asked": self.asked,
            "allowed": self.allowed,
            "trials": len(trials.tried),
            "config": config,
            "settings": PruningConfig.from_dict(config).to_dict(),
            "claim": claims.pop(CALIBRATED),
            "beside": claims,
            "scale": scales_of(recording, config),
            "transfer": [transfer(recording, config, other) for other in self.others],
            "command": self.command,
        }
        report.write(self.out, result, trials.tried, self.options)
        return result

    def _run(self, plan: Plan) -> Run:
        print(f"{plan.benchmark.name}, {plan.answers_file.stem}: {len(plan.selected)} questions", file=sys.stderr)
        return self.evaluator.run(plan)

    def _search(self, space: Space, trials: Trials) -> dict[str, Any]:
        found = cheapest(space, trials, self.options.trials)
        if found is None:
            raise UserError(
                f"none of {self.options.trials} configs kept {self.options.agreement:g} of the answers; "
                "give a lower --agreement, or more --trials"
            )
        best, row = found
        return with_shallow(best, row["flops"], space.scale, trials)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"model": record["model"], "scale": {name: record["scale"][name] for name in SCALES}}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--compare {path} is not the calibration.json of another model") from None
