"""LLaVA's trainer on transformers': packed or pruned steps, two learning rates, groups by modality, LLaVA's files."""

from __future__ import annotations

import csv
import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llava.files import replacing
from llava.model.pruning import PruningConfig, prune
from llava.train import saving
from llava.train.arguments import DataArguments, ModelArguments
from llava.train.data import ModalityGroups, TrainingData
from llava.train.models import PROJECTOR, Prepared

_DENSE = PruningConfig.from_dict({"method": "none"})


class LlavaTrainer(Trainer):
    """Trainer of `llava.train.train`; `config` is the method of pruned steps, None for training without one."""

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        data: TrainingData,
        prepared: Prepared,
        options: tuple[ModelArguments, DataArguments],
        config: PruningConfig | None,
    ):
        self.prepared, (self.model_options, self.data_options), self.config = prepared, options, config
        self.projector = [p for n, p in model.named_parameters() if PROJECTOR in n and p.requires_grad]
        super().__init__(model, args, data.collate, data, callbacks=[LearningCurve()])

    def step_config(self, step: int) -> PruningConfig | None:
        """Return what a step (from 0) runs with: the method or dense, drawn by seed and step; None: as the model is."""
        if self.config is None:
            return _DENSE if self.model_options.packed else None
        drawn = random.Random(f"{self.args.seed} {step}").random()
        return self.config if drawn < self.model_options.pruned_steps else _DENSE

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Take a step inside `prune`, its backward too: gradient checkpointing runs layers again there."""
        plain, config = self.accelerator.unwrap_model(model), self.step_config(self.state.global_step)
        with nullcontext() if config is None else prune(plain, config):
            return super().training_step(model, inputs, *args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Give the projector the learning rate `--mm_projector_lr`."""
        optimizer = super().create_optimizer(model)
        rate = self.data_options.mm_projector_lr
        if rate is None or any("initial_lr" in group for group in optimizer.param_groups):
            return optimizer
        own = {id(parameter) for parameter in self.projector}
        for group in list(optimizer.param_groups):
            mine = [parameter for parameter in group["params"] if id(parameter) in own]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
            if mine:
                optimizer.add_param_group({**group, "params": mine, "lr": rate})
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if not self.data_options.group_by_modality_length:
            return super()._get_train_sampler(train_dataset)
        world = self.args.world_size * self.args.gradient_accumulation_steps
        return ModalityGroups(self.train_dataset.lengths(), self.args.train_batch_size, world, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write LLaVA's files: exactly in a checkpoint, to resume from it, and in 16 bits at the end of the run."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        half = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        exact = folder.name.startswith("checkpoint-")
        saving.save(self.model, self.prepared, folder, state_dict, None if exact else half)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            saving.restore(model or self.model, Path(resume_from_checkpoint))


class LearningCurve(TrainerCallback):
    """Writes `learning_curve.csv` and `.png` beside the checkpoints, at every save and at the end."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the curve so far."""
        if state.is_world_process_zero:
            write_curve(Path(args.output_dir), state.log_history)

    on_train_end = on_save


def write_curve(folder: Path, history: list[dict[str, float]]) -> None:
    """Write loss and learning rate by step, as a table and as a picture; a thick line is a mean over 20 values."""
    from matplotlib.figure import Figure

    rows = [{key: row[key] for key in ("step", "loss", "learning_rate")} for row in history if "loss" in row]
    if not rows:
        return
    with replacing(folder / "learning_curve.csv") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    means = [sum(losses[max(0, i - 19) : i + 1]) / len(losses[max(0, i - 19) : i + 1]) for i in range(len(losses))]
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="0.8", linewidth=0.8)
    axes.plot(steps, means, color="C0", linewidth=1.6)
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    figure.savefig(folder / "learning_curve.png", dpi=110)
