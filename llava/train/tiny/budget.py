"""From minutes to steps: some steps of every stage are timed on a model that is thrown away."""

import time
from dataclasses import replace

import torch

from llava.tiny.export import Architecture
from llava.train.tiny import evaluation
from llava.train.tiny.batches import load
from llava.train.tiny.plan import EVALUATIONS, Settings
from llava.train.tiny.run import Trainer
from llava.train.tiny.stages import STAGES

_WARM = {"cpu": 2, "cuda": 20}
_TIMED = {"cpu": 8, "cuda": 120}
_LEAST = 10


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_step(trainer: Trainer, stage: int, workers: int) -> float:
    """Time a stage's steps, waiting for batches included; the trainer's model is changed."""
    kind = "cuda" if trainer.device.type == "cuda" else "cpu"
    warm, timed = _WARM[kind], _TIMED[kind]
    start = 0.0
    trainer.start_stage(stage)
    batches = load(trainer.batches(stage), 0, warm + timed, workers, kind == "cuda")
    for step, batch in enumerate(batches):
        if step == warm:
            _wait(trainer.device)
            start = time.perf_counter()
        trainer.train_step(batch, stage, step)
    _wait(trainer.device)
    return (time.perf_counter() - start) / timed


def steps_within(
    settings: Settings, recipe: str, minutes: float, workers: int, a: Architecture | None = None
) -> tuple[int, ...]:
    """Return how many steps of each stage fit into `minutes` here, the evaluations' time taken off.

    a: sizes of the model; None: those of the small model.
    """
    trainer = Trainer(replace(settings, steps=(10**6,) * len(STAGES)), recipe, a)
    examples = evaluation.draw_examples(settings.held_out)
    seconds = [seconds_per_step(trainer, stage, workers) for stage in range(len(STAGES))]
    start = time.perf_counter()
    trainer.measure(examples)
    left = 60 * minutes - EVALUATIONS * (time.perf_counter() - start)
    return tuple(max(_LEAST, int(s.share * left / each)) for s, each in zip(STAGES, seconds, strict=True))
