"""FitPrune at a budget: its numbers of tokens fitted to the model on tuning questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from llava.cli import UserError
from llava.eval.runner.batches import Batch
from llava.model.loaded import LoadedModel
from llava.model.pruning.fitting import fit
from llava.model.pruning.methods import VTW, FitPrune

from .matching import Absent, DryRun


def fitted(loaded: LoadedModel, batches: Sequence[Batch], dry: DryRun, budget: float) -> FitPrune:
    """Return FitPrune fitted to the share of visual FLOPs that brings the counted FLOPs to about the budget.

    batches: prepared tuning questions, read about eight times; dry: knows how long such questions are
    Raises `Absent` where that saving cannot be reached.
    """
    floor = dry.share(VTW(k=0))
    if floor >= budget:
        raise Absent(f"without any visual token it still costs {100 * floor:.1f}% of dense")
    read, saving = reader(loaded, batches), (1 - budget) / (1 - floor)  # of what visual tokens cost
    try:
        return fit(loaded.model, read, saving)
    except ValueError as error:
        raise Absent(str(error)) from None


def reader(loaded: LoadedModel, batches: Sequence[Batch]) -> Callable[[], torch.Tensor]:
    """Return a function that has the model read all batches; the images are encoded once, here.

    It returns the logits of the prompts' last tokens, [prompts, vocabulary].

    Raises `UserError` for a question that cannot be asked.
    """
    inputs, prepared = loaded.inputs, []
    with torch.inference_mode():
        for batch in batches:
            for question in batch.questions:
                reasons = [batch.refused.get(question), *map(batch.errors.get, question.paths)]
                if any(reasons):
                    raise UserError(f"{question.where}: {next(filter(None, reasons))}")
            images = inputs.encode_images(loaded.model, list(batch.pictures.values()))
            features = dict(zip(batch.pictures, images, strict=True))
            shown = [[features[path] for path in question.paths] for question in batch.questions]
            prepared.append(inputs.collate(batch.rows, shown, loaded.model))
    arguments = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": inputs.tokenizer.pad_token_id}
    arguments |= {"output_logits": True, "return_dict_in_generate": True}

    def read() -> torch.Tensor:
        return torch.cat([loaded.model.generate(**one, **arguments).logits[0] for one in prepared])

    return read
