"""Fits FitPrune's numbers of visual tokens to a model on a few questions of a benchmark; writes a pruning config.

The questions are read, not answered, and their annotations play no part (arXiv 2409.10197, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.cli import ModelOptions, OutputOptions, UserError, number, option, print_json, run_command

EPILOG = """
example: half of the visual tokens' FLOPs, on sixteen questions of the mini benchmark
  python -m llava.eval.fit_fitprune --model-path playground/checkpoints/llava-tiny --reduction 0.5 \\
      --questions playground/data/eval/gqa_mini/llava_gqa_testdev_balanced.jsonl \\
      --images playground/data/eval/gqa_mini/data/images --out runs/fitprune.json
then
  python -m llava.eval.run … --pruning-config runs/fitprune.json

Exit status: 0, 1 after one line on stderr, 2 for a wrong command line.
"""


@dataclass(kw_only=True)
class Options(ModelOptions, OutputOptions):
    """What is fitted on which questions."""

    questions: str = option(help="JSONL with question_id, text and image", metavar="FILE", aliases=["--question-file"])
    images: str = option(
        help="folder that the questions' image paths are relative to", metavar="FOLDER", aliases=["--image-folder"]
    )
    reduction: float = option(help="share of the visual tokens' FLOPs to save", type=number(float, 0, 1))
    out: Path = option(help="config to write, a .json that --pruning-config takes", aliases=["--output"])
    prompts: int = option(
        16, help="questions with an image to read, spread over the file (default 16)", type=number(int, 1)
    )
    batch_size: int = option(4, help="questions per batch (default 4)", type=number(int, 1))


def fitted_config(options: Options) -> dict[str, Any]:
    """Fit, write the config and return it; raises `UserError` for bad input, before the model loads."""
    from llava.eval.runner.evaluator import Evaluator
    from llava.eval.runner.questions import read_questions, require_images
    from llava.eval.tuning.benchmark_set import evenly
    from llava.eval.tuning.fitted import reader
    from llava.files import write_json
    from llava.model.preflight import check_model
    from llava.model.pruning.fitting import fit

    options.require_dense("the fit makes the config")
    out = options.out.expanduser()
    if out.suffix != ".json":
        raise UserError(f"--out {out} must end in .json, as --pruning-config takes it")
    with_image = [question for question in read_questions(options.questions, options.images) if question.paths]
    if not with_image:
        raise UserError("none of the questions has an image: there is nothing to fit")
    questions, missing = require_images(evenly(with_image, options.prompts), skip_bad=True)
    if missing:
        raise missing[0].refusal()
    check_model(options, None)
    out.parent.mkdir(parents=True, exist_ok=True)
    evaluator = Evaluator(options)
    loaded = evaluator.loaded
    config = fit(loaded.model, reader(loaded, evaluator.batches(questions)), options.reduction).to_dict()
    write_json(out, config)
    left = [config["visual_tokens"], *config["keep"][:-1]]
    print(f"{out}: {sum(left) / len(left):.1f} of {left[0]} visual tokens per layer, from {len(questions)} questions")
    return config


def work(options: Options) -> None:
    """Fit, and print the config."""
    print_json(fitted_config(options), options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(
        Options, work, argv, prog="python -m llava.eval.fit_fitprune", description=__doc__, epilog=EPILOG
    )


if __name__ == "__main__":
    raise SystemExit(main())
