"""One training run on disk: its plan, its states, its curve. Killed at any moment it continues to the same curve.

    OUT/plan.json            what was decided at the start: seed, device, precision, batch sizes, steps of every stage
    OUT/shared.pt            the state after, or within, the stages that both recipes share
    OUT/<recipe>.pt          the state within, or after, the recipe's own stages
    OUT/<recipe>.csv, .png   the curve: held-out accuracy by step

Everything random comes from (seed, stage, step), so a state is parameters, optimizers, step and curve.
"""

import math
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava.files import replacing
from llava.tiny.export import Architecture
from llava.train.tiny import evaluation
from llava.train.tiny.batches import Batch, Batches, load
from llava.train.tiny.decoder import DENSE
from llava.train.tiny.losses import training_loss
from llava.train.tiny.modules import TinyLlava
from llava.train.tiny.packing import prefix_ids, vocabulary_size
from llava.train.tiny.plan import EVALUATIONS, Settings
from llava.train.tiny.stages import (
    PAINTED,
    SHARED_STAGES,
    STAGES,
    Optimizers,
    choose_tokens,
    draw_plan,
    initialize_projector,
)

_SMOOTHING = 0.98
_LEAST_APART = 10
_PROJECTOR_PICTURES = 192
_PROJECTOR_DRAW = 4
"""Stands for a stage's number in the seed of these pictures; another would give other weights."""


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Save a state so that the file is the old one or the new one, whole, whatever happens meanwhile."""
    with replacing(path, "wb") as file:
        torch.save(state, file)


def read_state(path: Path) -> dict[str, Any] | None:
    """Read a saved state to the CPU; None where there is none."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


class Trainer:
    """A model in training through the stages of a `recipe`; None: the shared stages.

    `seconds` is for the caller to count; nothing depends on it.
    """

    def __init__(self, settings: Settings, recipe: str | None, architecture: Architecture | None = None):
        self.settings, self.recipe = settings, recipe
        self.device = torch.device(settings.device)
        torch.manual_seed(settings.seed)
        self.architecture = architecture or replace(Architecture(), vocab_size=vocabulary_size())
        self.model = TinyLlava(self.architecture, prefix_ids()).to(self.device)
        self.stages = range(SHARED_STAGES) if recipe is None else range(SHARED_STAGES, len(STAGES))
        self.stage, self.step = self.stages.start, 0
        self.optimizers = Optimizers(self.model, tower_only=STAGES[self.stage].tokens == 0)
        self.loss: torch.Tensor | None = None
        self.curve: list[dict[str, float | str]] = []
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs; plain values and tensors."""
        return {
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "stage": self.stage,
            "step": self.step,
            "loss": None if self.loss is None else self.loss.cpu(),
            "curve": self.curve,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken: within these stages, or at the end of the shared ones."""
        self.model.load_state_dict(state["model"])
        self.stage, self.step = state["stage"], state["step"]
        stepped = max(0, self.stage if self.step else self.stage - 1)
        self.optimizers = Optimizers(self.model, tower_only=STAGES[stepped].tokens == 0)
        self.optimizers.load_state_dict(deepcopy(state["optimizers"]))  # torch would train on the given tensors
        self.loss = None if state["loss"] is None else state["loss"].to(self.device)
        self.curve, self.seconds = list(state["curve"]), state["seconds"]

    @property
    def done(self) -> int:
        """Steps taken in all stages so far."""
        return sum(self.settings.steps[: self.stage]) + self.step

    @property
    def total(self) -> int:
        """Steps at the end of this trainer's stages."""
        return sum(self.settings.steps[: self.stages.stop])

    def batches(self, stage: int) -> Batches:
        """Return the batches of a stage."""
        s = self.settings
        now = STAGES[stage]
        images = s.tower_images if now.tokens == 0 else s.images
        return Batches(s.seed, stage, images, s.questions, now.styles, round(PAINTED * images))

    def train_step(self, batch: Batch, stage: int, step: int) -> torch.Tensor:
        """Train on one batch; returns the loss to show, a scalar on the device (reading it waits)."""
        now = STAGES[stage]
        rng = np.random.default_rng([self.settings.seed, stage, step, 1])
        batch = batch.to(self.device)
        chosen = choose_tokens(batch.labels[: len(batch.packed.ids)], now.tokens, rng) if now.tokens else None
        pruned = self.recipe == "pruning-aware" and stage >= SHARED_STAGES
        plan = draw_plan(rng, len(self.model.layers), now.glance) if pruned else DENSE
        dtype = self.settings.autocast
        rate = now.rate(step, self.settings.steps[stage])
        with torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            loss, shown = training_loss(self.model, batch, plan, chosen, now.pointing * rate, now.heads, now.verdicts)
        loss.backward()
        self.optimizers.step(rate)
        return shown

    def start_stage(self, stage: int) -> None:
        """Prepare the model: the decoder's first stage sets the projector by what the tower has learned."""
        if stage and STAGES[stage - 1].tokens == 0:
            batch = Batches(self.settings.seed, _PROJECTOR_DRAW, _PROJECTOR_PICTURES, 0)[0].to(self.device)
            torch.manual_seed(self.settings.seed + 1)
            initialize_projector(self.model, batch.pictures, batch.labels)
            self.optimizers = Optimizers(self.model, tower_only=False)

    def run(self, workers: int) -> Iterator[int]:
        """Train to the end of the stages, with batches drawn by `workers` processes; yields the steps done after each.

        Raises `RuntimeError` when an evaluation finds the loss to be no number.
        """
        examples = evaluation.draw_examples(self.settings.held_out)
        every = max(_LEAST_APART, sum(self.settings.steps[1:]) // EVALUATIONS)
        while self.stage in self.stages:
            if self.step == 0:
                self.start_stage(self.stage)
            steps = self.settings.steps[self.stage]
            for batch in load(self.batches(self.stage), self.step, steps, workers, self.device.type == "cuda"):
                shown = self.train_step(batch, self.stage, self.step)
                self.loss = shown if self.loss is None else _SMOOTHING * self.loss + (1 - _SMOOTHING) * shown
                self.step += 1
                if STAGES[self.stage].tokens != 0 and (self.done % every == 0 or self.step == steps):
                    self.curve.append(self.measure(examples))
                if self.step == steps:
                    self.stage, self.step, self.loss = self.stage + 1, 0, None
                yield self.done

    def measure(self, examples: Sequence[evaluation.Example]) -> dict[str, float | str]:
        """Return one row of the curve."""
        loss = 0.0 if self.loss is None else float(self.loss)
        if not math.isfinite(loss):
            raise RuntimeError(f"the loss is {loss} after {self.done} steps: training has diverged")
        answered = evaluation.answer_all(self.model, examples, precision=self.settings.autocast)
        row = {"step": self.done, "stage": STAGES[self.stage].name, "loss": loss}
        return row | {"mean": evaluation.mean(answered)} | evaluation.by_kind(answered)


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
