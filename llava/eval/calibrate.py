"""Finds VisiPruner's thresholds for a model, without labels: the answers stay those of dense, at the least FLOPs."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.conversation import conv_templates
from llava.eval.benchmarks import question_set
from llava.eval.model_vqa_loader import Parser, number
from llava.eval.runner.answering import Generation
from llava.eval.runner.batches import Batch, BatchDataset, group
from llava.eval.runner.jobs import Job, Result, do, make_job
from llava.eval.runner.questions import read_questions, require_images
from llava.eval.runner.ranks import Ranks
from llava.eval.runner.runfile import fingerprint
from llava.eval.runner.running import Loaded, Loader
from llava.eval.suite import parse_config
from llava.eval.tuning import report
from llava.eval.tuning.candidates import Space
from llava.eval.tuning.held_out_agreement import bearable, claim, texts_of
from llava.eval.tuning.recording import Watched, watch
from llava.eval.tuning.samples import split, write_questions
from llava.eval.tuning.scale import describe, transfer
from llava.eval.tuning.search import cheapest, with_shallow
from llava.eval.tuning.trials import Trials
from llava.model.pruning import PruningConfig
from llava.model.pruning.families import family_of
from llava.model.pruning.flops import DecoderShape

CALIBRATED = "calibrated"
EPILOG = """
example:
  python -m llava.tiny.benchmarks --split tune --questions 4000
  python -m llava.eval.calibrate --model-path playground/checkpoints/llava-tiny \\
      --questions playground/data/eval/tune/gqa_mini/llava_gqa_testdev_balanced.jsonl \\
      --images playground/data/eval/tune/gqa_mini/data/images --samples 64 --agreement 0.99 --batch-size 16
then
  python -m llava.eval.model_vqa_loader … --pruning-config OUT/pruning.json

How: the samples are answered dense, and read once more with the influence of every layer written down. From that the
FLOPs of any setting are told without running it, for which few samples are enough; a search then asks the promising
ones for real, one stage of the method after another, on the samples and the --confirm questions. So few answers may
differ that a setting of just --agreement passes in one of six cases at most: two of 488 at 0.99, six of 1000. (Below
180 even no difference comes more often than that: few questions promise too much.) What fails is stopped early. The
claim is measured on questions of other images, which the search never sees. Use questions like those that the model
will be asked.

OUT gets pruning.json (the config), report.md, tradeoff.png, calibration.json (everything, for programs), the questions
of each part and the held-out answers dense and calibrated (`python -m llava.eval.compare` reads them). The same
command goes on where it was interrupted. The last line of output is one JSON object. Exit status: 0, 1 after one line
on stderr (also when the held-out agreement misses the wanted one), 2 for a wrong command line.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog="python -m llava.eval.calibrate",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model-path", required=True, help="checkpoint folder or hub name; docs/models.md lists the known models")
    add("--model-base", help="base model of a projector-only checkpoint")
    add("--questions", required=True, help="JSONL with question_id, text and image; no answers are needed")
    add("--images", required=True, help="folder that the questions' image paths are relative to")
    add("--samples", type=number(int, 1), default=64, help="questions whose influence is written down (default 64)")
    add("--confirm", type=number(int, 0), default=1000, help="further ones to ask settings, at most (default 1000)")
    add("--held-out", type=number(int, 1), default=1000, help="questions for the claim, at most (default 1000)")
    add("--agreement", type=number(float, 0, 1), default=0.99, help="share of answers that must equal dense (0.99)")
    add("--trials", type=number(int, 1), default=40, help="settings to ask for real, at most (default 40)")
    add(
        "--scale",
        choices=("absolute", "relative"),
        default="absolute",
        help="of tokens_threshold: ‖c‖ (default), or ‖c‖ / ‖O‖, which does not depend on a model's scale",
    )
    beside = "a config to set beside the calibrated one on the held-out questions, such as the model's pruning.json"
    add("--config", action="append", type=parse_config, default=[], metavar="NAME=CONFIG", help=beside)
    add("--compare", action="append", default=[], metavar="FILE", help="another model's calibration.json: which scale "
        "transfers? (may be given again)")  # fmt: skip
    add("--out", type=Path, help="folder to write to (default runs/calibrate/MODEL)")
    add("--batch-size", type=number(int, 1), default=8, help="questions a batch (default 8)")
    add("--max_new_tokens", type=number(int, 1), default=128, help="longest answer in tokens (default 128)")
    add("--seed", type=number(int, 0), default=0, help="of the draw of questions (default 0)")
    add("--conv-mode", choices=list(conv_templates), help="prompt format of LLaVA's original layout")
    add("--device", default="auto", help="auto (default: CUDA, MPS, CPU in this order), cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", help="float32, float16, bfloat16; auto (default) is float32 on CPU, else float16")
    add("--overwrite", action="store_true", help="start anew what is in the folder")
    return parser


class Calibration:
    """One calibration in its folder; every step leaves a file behind, and is not done again when the file is there."""

    def __init__(self, args: argparse.Namespace, command: str):
        self.args, self.command, self.loader = args, command, Loader()
        name = Path(args.model_path).expanduser().name
        self.out = (args.out or Path("runs") / "calibrate" / name).expanduser()
        self.others = [_read_record(Path(path)) for path in args.compare]
        self.beside = {name: config.to_dict() for name, config in args.config}
        if CALIBRATED in self.beside or len(self.beside) < len(args.config):
            raise ValueError(
                f"--config: every name once, and none {CALIBRATED!r}; got {[name for name, _ in args.config]}"
            )
        questions = read_questions(args.questions, args.images)
        places = split(questions, args.samples, args.confirm, args.held_out, args.seed)
        chosen = ([questions[place] for place in part] for part in places)
        self.parts = dict(zip(("samples", "confirm", "heldout"), chosen, strict=True))
        _, missing = require_images([one for part in self.parts.values() for one in part], skip_bad=True)
        if missing:
            first = missing[0]
            raise ValueError(f"{first.question.where}: {first.reason}; --images is the folder that paths begin in")
        self.choosing = [part for part in ("samples", "confirm") if self.parts[part]]
        self.asked = sum(len(self.parts[part]) for part in self.choosing)
        self.allowed = bearable(self.asked, args.agreement)

    def run(self) -> dict[str, Any]:
        """Run all steps and return the record, as `calibration.json` has it."""
        self._prepare()
        dense = {part: self._do(part, "dense", None).job for part in self.choosing}
        loaded = self.loader(dense["samples"].args, dense["samples"].plan)
        batches = {part: self._batches(part, loaded) for part in dense}
        watched = self._watch(loaded, batches["samples"])
        trials = Trials(
            self.out / "trials.jsonl",
            loaded,
            [batch for part in batches.values() for batch in part],
            {key: text for job in dense.values() for key, text in texts_of(job.plan.answers_file).items()},
            self.allowed,
            Generation(max_new_tokens=self.args.max_new_tokens),
        )
        tried: list[dict[str, Any]] = []
        shape = DecoderShape.of(family_of(loaded.model).decoder(loaded.model).config)
        with tqdm(desc="trials", unit="config", dynamic_ncols=True) as bar:
            found = self._search(watched, shape, _telling(trials, tried, bar))
        config = PruningConfig.from_dict(found)
        (self.out / "pruning.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        self._do("heldout", "dense", None)
        record = {
            "model": Path(self.args.model_path).expanduser().name,
            "agreement": self.args.agreement,
            "samples": len(self.parts["samples"]),
            "asked": self.asked,
            "allowed": self.allowed,
            "trials": len(tried),
            "config": found,
            "settings": config.to_dict(),
            "claim": self._claim(CALIBRATED, found),
            "beside": {name: self._claim(name, settings) for name, settings in self.beside.items()},
            "scale": describe(watched, found),
            "transfer": [transfer(watched, found, other) for other in self.others],
            "command": self.command,
        }
        report.write(self.out, record, tried)
        return record

    def _prepare(self) -> None:
        """Make the folder, and write the questions; refuse a folder in which other ones were calibrated."""
        self.out.mkdir(parents=True, exist_ok=True)
        own = ("samples", "confirm", "held_out", "agreement", "max_new_tokens", "seed", "scale", "dtype", "conv_mode")
        settings = {key: getattr(self.args, key) for key in own}
        settings |= {"questions": fingerprint(Path(self.args.questions).expanduser())[:16]}
        path, done = self.out / "settings.json", {}
        if path.is_file() and not self.args.overwrite:
            done = json.loads(path.read_text(encoding="utf-8"))
        if changed := [key for key in settings if done and done.get(key) != settings[key]]:
            told = "; ".join(f"{key}: {done.get(key)}, now {settings[key]}" for key in changed)
            raise ValueError(f"{self.out} was made with other settings ({told}); give another --out, or --overwrite")
        if self.args.overwrite:
            for name in ("trials.jsonl", "influence.npz"):
                (self.out / name).unlink(missing_ok=True)
        for part, questions in self.parts.items():
            write_questions(self.out / f"{part}.jsonl", questions)
        self.dense = {part: self._job(part, "dense", None) for part in (*self.choosing, "heldout")}
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    def _job(self, part: str, name: str, config: dict[str, Any] | None) -> Job:
        own = ("model_path", "model_base", "batch_size", "max_new_tokens", "conv_mode", "device", "dtype", "overwrite")
        settings = {key: getattr(self.args, key) for key in own}
        settings["pruning_config"] = None if config is None else json.dumps(config)
        images = str(Path(self.args.images).expanduser().resolve())
        benchmark = question_set(self.out / f"{part}.jsonl", images, name=part, max_new_tokens=self.args.max_new_tokens)
        return make_job(benchmark, self.out, self.out, name, settings)

    def _do(self, part: str, name: str, config: dict[str, Any] | None) -> Result:
        result = do(self._job(part, name, config), self.command, self.loader, Ranks())
        print(f"{part}, {name}: {result.record['totals']['questions']} answers", file=sys.stderr)
        return result

    def _claim(self, name: str, config: dict[str, Any]) -> dict[str, Any]:
        result = self._do("heldout", name, config)
        dense = self.dense["heldout"].plan.answers_file
        return claim(dense, result.job.plan.answers_file, result.record["totals"])

    def _batches(self, part: str, loaded: Loaded) -> list[Batch]:
        """Prepare a part's questions in batches that stand alone, so that trials may ask them in any order."""
        plan = self.dense[part].plan
        groups = group(plan.selected, set(plan.selected), self.args.batch_size, loaded.inputs)
        dataset = BatchDataset([replace(one, unit=place) for place, one in enumerate(groups)], loaded.inputs)
        return [dataset[place] for place in range(len(dataset))]

    def _watch(self, loaded: Loaded, batches: Sequence[Batch]) -> Watched:
        path = self.out / "influence.npz"
        if not path.is_file():
            watch(loaded, batches).save(path)
        return Watched.read(path)

    def _search(self, watched: Watched, shape: DecoderShape, attempt: Callable) -> dict[str, Any]:
        scale = self.args.scale
        found = cheapest(Space(watched, shape, scale), attempt, self.args.trials)
        if found is None:
            raise ValueError(
                f"none of {self.args.trials} settings kept {self.args.agreement:g} of the answers; "
                "give a lower --agreement, or more --trials"
            )
        best, row = found
        return with_shallow(best, row["flops"], scale, attempt)


def _telling(trials: Trials, tried: list[dict[str, Any]], bar: tqdm) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return `trials.run`, its rows collected in `tried` and shown in the bar."""

    def attempt(settings: dict[str, Any]) -> dict[str, Any]:
        row = trials.run(settings)
        tried.append(row)
        passed = [one["flops"] for one in tried if one["passed"]]
        bar.set_postfix_str(f"{100 * min(passed):.1f}% of dense FLOPs" if passed else "none passed", refresh=False)
        bar.update()
        return row

    return attempt


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"model": record["model"], "scale": {name: record["scale"][name] for name in ("absolute", "relative")}}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"--compare {path} is not the calibration.json of another model") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(words)
    try:
        calibration = Calibration(args, shlex.join(["python", "-m", "llava.eval.calibrate", *words]))
        record = calibration.run()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    print(report.sentence(record))
    print(f"{calibration.out / 'pruning.json'}, {calibration.out / 'report.md'}")
    print(json.dumps(record))
    if record["claim"]["agreement"] < args.agreement:
        print("error: the held-out agreement misses the wanted one; ask more: --confirm", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
