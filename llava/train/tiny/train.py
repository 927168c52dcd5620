"""The run of the recipe: its plan, the shared stages, then each recipe's own, saved every minute."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from llava.train.tiny import RECIPES
from llava.train.tiny.plan import Settings, default_settings, read_plan, write_plan
from llava.train.tiny.publish import publish, write_curve
from llava.train.tiny.run import Trainer, read_state, steps_within, write_state
from llava.train.tiny.stages import STAGES
from llava.utils import pick_device

if TYPE_CHECKING:
    from llava.train.tiny.__main__ import Options

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


def decide(options: Options, workers: int) -> Settings:
    """Read the run's plan, or make one and write it. Raises `ValueError` for a folder that must not be used."""
    out = options.out
    settings = read_plan(out)
    if settings and not options.resume:
        raise ValueError(f"{out} holds a run already: --resume continues it, another --out starts a new one")
    if settings and len(settings.steps) != len(STAGES):
        was, now = len(settings.steps), len(STAGES)
        raise ValueError(f"{out} is a run of {was} stages, training has {now} now: give another --out")
    if settings:
        return settings
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no run: give another --out")
    settings = default_settings(options.seed, pick_device(options.device), options.threads, options.images)
    torch.set_num_threads(settings.threads)
    steps = options.steps
    if steps is None:
        print("timing a few steps of every stage", file=sys.stderr)
        recipe = "plain" if options.recipe == "plain" else "pruning-aware"
        steps = steps_within(settings, recipe, options.minutes, workers)
    out.mkdir(parents=True, exist_ok=True)
    settings = replace(settings, steps=steps)
    write_plan(out, settings)
    return settings


def train(options: Options) -> None:
    """Run the training that the options describe."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in another order each time
    workers = options.workers
    if workers is None:
        workers = os.cpu_count() or 1 if pick_device(options.device).type == "cuda" else 1
    settings = decide(options, workers)
    named = ", ".join(f"{n} {stage.name}" for stage, n in zip(STAGES, settings.steps, strict=True))
    print(f"steps: {named}; {settings.images} pictures x {settings.questions} questions", file=sys.stderr)
    train_part(settings, options.out, None, workers)
    if options.recipe == "both" and settings.device == "cpu":
        train_side_by_side(settings, options.out, workers)
    else:
        for recipe in RECIPES if options.recipe == "both" else [options.recipe]:
            train_recipe(settings, options.out, recipe, workers)
