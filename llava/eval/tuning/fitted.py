"""FitPrune at a budget: its numbers are fitted to the model on tuning questions, then scaled onto the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from llava.eval.runner.batches import Batch
from llava.eval.runner.running import Loaded
from llava.model.pruning.fitting import fit
from llava.model.pruning.methods import VTW, FitPrune

from .dry import DryRun
from .knobs import Knob

REACH = 0.5
"""By how much the fitted numbers may be scaled, up or down."""


def fitted(loaded: Loaded, batches: Sequence[Batch], dry: DryRun, budget: float) -> Knob:
    """Return FitPrune fitted to the share of visual FLOPs that brings the counted FLOPs to about the budget.

    batches: prepared tuning questions, read about eight times; dry: knows how long such questions are
    Raises `ValueError` where that saving cannot be reached.
    """
    floor = dry.share(VTW(k=0))
    if floor >= budget:
        raise ValueError(f"without any visual token it still costs {100 * floor:.1f}% of dense")
    saving = (1 - budget) / (1 - floor)  # of what visual tokens cost
    found = fit(loaded.model, reader(loaded, batches), saving)

    def setting(x: float) -> FitPrune:
        scale = 1 - REACH + 2 * REACH * x
        keep = tuple(min(found.visual_tokens, round(scale * count)) for count in found.keep)
        return FitPrune(keep=keep, visual_tokens=found.visual_tokens)

    return Knob(f"fitted on {sum(len(batch.rows) for batch in batches)} questions", setting)


def reader(loaded: Loaded, batches: Sequence[Batch]) -> Callable[[], None]:
    """Return a function that has the model read all of them; the images are looked at once, here.

    Raises `ValueError` for a question that cannot be asked.
    """
    inputs, prepared = loaded.inputs, []
    with torch.inference_mode():
        for batch in batches:
            for question in batch.questions:
                reason = batch.refused.get(question) or batch.errors.get(question.path)
                if reason:
                    raise ValueError(f"{question.where}: {reason}")
            seen = dict(
                zip(batch.pictures, inputs.encode_images(loaded.model, list(batch.pictures.values())), strict=True)
            )
            shown = [[seen[question.path]] if question.path in seen else [] for question in batch.questions]
            prepared.append(inputs.collate(batch.rows, shown, loaded.model))
    arguments: dict[str, Any] = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": inputs.tokenizer.pad_token_id}

    def read() -> None:
        for one in prepared:
            loaded.model.generate(**one, **arguments)

    return read
