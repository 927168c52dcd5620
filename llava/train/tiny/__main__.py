"""Train the small model from scratch: tower, alignment, curriculum, pruning-aware stage, export.

    python -m llava.train.tiny --out runs/tiny [--recipe pruning-aware|plain|both] [--minutes 90] [--device auto]

The minutes are turned into a number of steps once, at the start, by timing a few steps of every stage; OUT/plan.json
keeps them, and from then on steps decide. The same plan, seed and device give the same curve; a run that was killed
continues with --resume. `both` trains the two recipes from one shared start with the same steps, on a CPU side by side,
each on half of the threads. At the end OUT has a checkpoint in LLaVA's layout for each recipe (llava-tiny,
llava-tiny-plain) with its model card, and the learning curves (.csv, .png).

Meant for 60 to 120 minutes of two CPU cores a recipe, or 10 to 25 of a CUDA device (not tried on one yet).
"""

import argparse
import multiprocessing
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from llava.train.tiny.budget import steps_within
from llava.train.tiny.curve import write_curve
from llava.train.tiny.plan import Settings, default_settings, read_plan, write_plan
from llava.train.tiny.publish import publish
from llava.train.tiny.run import Trainer, read_state, write_state
from llava.train.tiny.stages import RECIPES, STAGES
from llava.utils import pick_device

_SAVE_SECONDS = 60.0


def train_part(settings: Settings, out: Path, recipe: str | None, workers: int, line: int = 0) -> Trainer:
    """Run the shared stages (recipe None) or a recipe's own to their end, from the newest state; return the trainer.

    line: of the terminal, for the progress bar.
    """
    torch.set_num_threads(settings.threads)
    if settings.device.startswith("cuda"):
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    trainer = Trainer(settings, recipe)
    name = recipe or "shared"
    state = read_state(out / f"{name}.pt") or (read_state(out / "shared.pt") if recipe else None)
    if state:
        trainer.load_state_dict(state)
    options = {"unit": "step", "desc": name, "mininterval": 1, "position": line}
    with tqdm(total=trainer.total, initial=trainer.done, **options) as bar:
        saved = time.monotonic()
        for done in trainer.run(workers):
            if trainer.curve:
                last = trainer.curve[-1]
                bar.set_postfix_str(f"held-out {last['mean']:.3f} at step {last['step']}", refresh=False)
            bar.update(done - bar.n)
            since = time.monotonic() - saved
            if done == trainer.total or since > _SAVE_SECONDS:
                trainer.seconds += since
                write_state(out / f"{name}.pt", trainer.state_dict())
                write_curve(out / name, trainer.curve)
                saved = time.monotonic()
    return trainer


def train_recipe(settings: Settings, out: Path, recipe: str, workers: int, line: int = 0) -> None:
    """Run a recipe's own stages, then measure, export and describe the model."""
    trainer = train_part(settings, out, recipe, workers, line)
    folder = publish(trainer, out)
    tqdm.write(f"{recipe}: wrote {folder}")


def train_side_by_side(settings: Settings, out: Path, workers: int) -> None:
    """Run both recipes at the same time, each on half of the threads; raises `RuntimeError` if one fails."""
    halved = replace(settings, threads=max(1, settings.threads // 2))
    context = multiprocessing.get_context("spawn")
    jobs = [(halved, out, recipe, workers, line) for line, recipe in enumerate(RECIPES)]
    processes = [context.Process(target=train_recipe, args=job) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [recipe for recipe, process in zip(RECIPES, processes, strict=True) if process.exitcode]
    if failed:
        raise RuntimeError(f"training failed: {', '.join(failed)}; --resume continues from the last saved state")


def parse_steps(text: str) -> tuple[int, ...]:
    """Read "600,260,260,1200"; raises `ArgumentTypeError` unless it is one positive number for each stage."""
    names = ", ".join(stage.name for stage in STAGES)
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        steps = ()
    if len(steps) != len(STAGES) or min(steps) < 1:
        raise argparse.ArgumentTypeError(f"expected {len(STAGES)} positive numbers ({names}), got {text!r}")
    return steps


def decide(args: argparse.Namespace, workers: int) -> Settings:
    """Read the run's plan, or make one and write it. Raises `ValueError` for a folder that must not be used."""
    settings = read_plan(args.out)
    if settings and not args.resume:
        raise ValueError(f"{args.out} holds a run already: --resume continues it, another --out starts a new one")
    if settings and len(settings.steps) != len(STAGES):
        was, now = len(settings.steps), len(STAGES)
        raise ValueError(f"{args.out} is a run of {was} stages, training has {now} now: give another --out")
    if settings:
        return settings
    if args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"{args.out} is not empty and holds no run: give another --out")
    settings = default_settings(args.seed, pick_device(args.device), args.threads, args.images)
    torch.set_num_threads(settings.threads)
    steps = args.steps
    if steps is None:
        print("timing a few steps of every stage", file=sys.stderr)
        recipe = "plain" if args.recipe == "plain" else "pruning-aware"
        steps = steps_within(settings, recipe, args.minutes, workers)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = replace(settings, steps=steps)
    write_plan(args.out, settings)
    return settings


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder of the run (default runs/tiny)")
    parser.add_argument("--recipe", choices=[*RECIPES, "both"], default="pruning-aware", help="default pruning-aware")
    parser.add_argument(
        "--minutes", type=float, default=90.0, help="training of one model takes about this (default 90)"
    )
    stages = ",".join(stage.name.upper() for stage in STAGES)
    parser.add_argument("--steps", type=parse_steps, metavar=stages, help="steps of the stages, instead of --minutes")
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda, cuda:1 … (default auto)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument("--images", type=int, help="pictures of a batch (default 10, on CUDA 256)")
    parser.add_argument(
        "--threads", type=int, help="CPU threads that train (default: one a core; on a busy machine 1 is faster)"
    )
    parser.add_argument("--workers", type=int, help="processes that draw batches (default 1, on CUDA one a core)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out; its plan stays as it is")
    args = parser.parse_args(argv)
    for name, least in (("seed", 0), ("images", 1), ("threads", 1), ("workers", 0), ("minutes", 0.1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(args, name)}")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in another order each time
    try:
        workers = args.workers
        if workers is None:
            workers = os.cpu_count() or 1 if pick_device(args.device).type == "cuda" else 1
        settings = decide(args, workers)
        named = ", ".join(f"{n} {stage.name}" for stage, n in zip(STAGES, settings.steps, strict=True))
        print(f"steps: {named}; {settings.images} pictures x {settings.questions} questions", file=sys.stderr)
        train_part(settings, args.out, None, workers)
        if args.recipe == "both" and settings.device == "cpu":
            train_side_by_side(settings, args.out, workers)
        else:
            for recipe in RECIPES if args.recipe == "both" else [args.recipe]:
                train_recipe(settings, args.out, recipe, workers)
    except KeyboardInterrupt:
        sys.exit("train: interrupted; --resume continues from the last saved state")
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"train: {error}")


if __name__ == "__main__":
    main()
