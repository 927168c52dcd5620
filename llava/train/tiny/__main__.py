"""Train the small model from scratch: tower, alignment, curriculum, pruning-aware stage, export.

    python -m llava.train.tiny --out runs/tiny [--recipe pruning-aware|plain|both] [--minutes 90] [--device auto]

The minutes are turned into a number of steps once, at the start, by timing a few steps of every stage; OUT/plan.json
keeps them, and from then on steps decide. The same plan, seed and device give the same curve; a run that was killed
continues with --resume. `both` trains the two recipes from one shared start with the same steps, on a CPU side by side,
each on half of the threads. At the end OUT has a checkpoint in LLaVA's layout for each recipe (llava-tiny,
llava-tiny-plain) with its model card, and the learning curves (.csv, .png).

Meant for 60 to 120 minutes of two CPU cores a recipe, or 10 to 25 of a CUDA device (not tried on one yet).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava.cli import number, option, run_command
from llava.train.tiny import STAGE_NAMES


def _steps(text: str) -> tuple[int, ...]:
    """Read "600,260,260,1200": one positive number for each stage."""
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        steps = ()
    if len(steps) != len(STAGE_NAMES) or min(steps) < 1:
        names = ", ".join(STAGE_NAMES)
        raise argparse.ArgumentTypeError(f"expected {len(STAGE_NAMES)} positive numbers ({names}), got {text!r}")
    return steps


@dataclass(kw_only=True)
class Options:
    """Options of the command: recipe, duration and device."""

    out: Path = option(Path("runs/tiny"), help="folder of the run (default runs/tiny)")
    recipe: Literal["pruning-aware", "plain", "both"] = option("pruning-aware", help="default pruning-aware")
    minutes: float = option(90.0, help="training of one model takes about this (default 90)", type=number(float, 0.1))
    steps: tuple[int, ...] | None = option(
        None,
        help="steps of the stages, instead of --minutes",
        type=_steps,
        metavar=",".join(name.upper() for name in STAGE_NAMES),
    )
    device: str = option("auto", help="auto, cpu, mps, cuda, cuda:1 … (default auto)")
    seed: int = option(0, help="seed (default 0)", type=number(int, 0))
    images: int | None = option(None, help="pictures per batch (default 10, on CUDA 256)", type=number(int, 1))
    threads: int | None = option(
        None, help="CPU threads that train (default: one per core; on a busy machine 1 is faster)", type=number(int, 1)
    )
    workers: int | None = option(
        None, help="processes that draw batches (default 1, on CUDA one per core)", type=number(int, 0)
    )
    resume: bool = option(False, help="continue the run in --out; its plan stays as it is")


def work(options: Options) -> None:
    """Run the training that the options describe."""
    from llava.train.tiny.train import train

    train(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    about = {"prog": "python -m llava.train.tiny", "description": __doc__}
    return run_command(Options, work, argv, interrupted="interrupted; --resume continues from the last state", **about)


if __name__ == "__main__":
    sys.exit(main())
