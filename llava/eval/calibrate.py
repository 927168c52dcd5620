"""Find VisiPruner's thresholds without labels: the config with least FLOPs whose answers equal dense."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.cli import ModelOptions, OutputOptions, command_of, number, option, print_json, run_command
from llava.eval.results.plots import PlotOptions

PROG = "python -m llava.eval.calibrate"
EPILOG = """
example:
  python -m llava.tiny.benchmarks --split tune --questions 4000
  python -m llava.eval.calibrate --model-path playground/checkpoints/llava-tiny \\
      --questions playground/data/eval/tune/gqa_mini/llava_gqa_testdev_balanced.jsonl \\
      --images playground/data/eval/tune/gqa_mini/data/images --samples 64 --agreement 0.99 --batch-size 16
then
  python -m llava.eval.run … --pruning-config OUT/pruning.json

Use questions like those that the model will be asked. docs/calibration.md says how the search works and what the claim
means.

OUT gets pruning.json (the config), report.md, tradeoff.png, calibration.json (everything, for programs), the questions
of each part and the held-out answers dense and calibrated (`python -m llava.eval.compare` reads them). An interrupted
command continues when it is given again. Exit status: 0, 1 after one line on stderr (also when the held-out agreement
misses the wanted one), 2 for a wrong command line.
"""


@dataclass(kw_only=True)
class Options(ModelOptions, PlotOptions, OutputOptions):
    """Options of the command: model, questions, images and targets."""

    questions: str = option(help="JSONL with question_id, text and image; no answers are needed", metavar="FILE")
    images: str = option(help="folder that the questions' image paths are relative to", metavar="FOLDER")
    samples: int = option(64, help="questions whose influence is recorded (default 64)", type=number(int, 1))
    confirm: int = option(1000, help="further questions for the trials, at most (default 1000)", type=number(int, 0))
    held_out: int = option(
        1000, help="questions that the final agreement is measured on, at most (default 1000)", type=number(int, 1)
    )
    agreement: float = option(
        0.99, help="share of answers that must equal dense (default 0.99)", type=number(float, 0, 1)
    )
    trials: int = option(
        40,
        help="trials of configs, at most (default 40); masking shallow layers may take two more",
        type=number(int, 1),
    )
    scale: Literal["absolute", "relative"] = option(
        "absolute", help="of tokens_threshold: ‖c‖ (default), or ‖c‖ / ‖O‖, which does not depend on a model's scale"
    )
    config: list[str] = option(
        [],
        help="a config to compare with the calibrated one on the held-out questions, such as the model's pruning.json",
        metavar="NAME=CONFIG",
        repeated=True,
    )
    compare: list[str] = option(
        [],
        help="another model's calibration.json: which scale transfers? (may be given again)",
        metavar="FILE",
        repeated=True,
    )
    out: Path | None = option(None, help="folder to write to (default runs/calibrate/MODEL)")
    batch_size: int = option(8, help="questions per batch (default 8)", type=number(int, 1))
    max_new_tokens: int = option(128, help="longest answer in tokens (default 128)", type=number(int, 1))
    seed: int = option(0, help="seed of the draw of questions (default 0)", type=number(int, 0))
    overwrite: bool = option(False, help="discard the folder's content and start again")


def work(options: Options) -> int:
    """Calibrate, and print the claim; 1 if it misses the wanted agreement."""
    from llava.eval.tuning import report
    from llava.eval.tuning.calibration import Calibration

    options.require_dense("calibration chooses the config; --config NAME=CONFIG sets one beside it")
    calibration = Calibration(options, command_of(PROG, options))
    record = calibration.run()
    print(report.sentence(record))
    print(f"{calibration.out / 'pruning.json'}, {calibration.out / 'report.md'}")
    print_json(record, options)
    if record["claim"]["agreement"] < options.agreement:
        print("error: the held-out agreement misses the wanted one; ask more: --confirm", file=sys.stderr)
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog=PROG, description=__doc__, epilog=EPILOG)


if __name__ == "__main__":
    raise SystemExit(main())
