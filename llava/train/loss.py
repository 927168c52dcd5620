"""The loss at answers alone: the head computes no logits of questions and visual tokens, which have no label.

At 49,152 words the head is a fifth of SmolLM2-135M, and most of a prompt is no answer; at 32,000 words the logits of a
batch of 16 would take 4 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

_CHANGED = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@contextmanager
def answers_only(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a forward with `labels` computes logits where a label is; its output's logits are zeros in shape only.

    Models that change logits on their way to the loss run as they are. Raises `RuntimeError` if one does without its
    configuration saying so.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    if any(getattr(config, name, None) not in (None, 1, 1.0) for name in _CHANGED):
        yield
        return
    forward, loss_function, own = head.forward, model.loss_function, "_loss_function" in vars(model)
    held: dict[str, torch.Tensor] = {}

    def postponed(hidden: torch.Tensor) -> torch.Tensor:
        held["hidden"] = hidden
        held["logits"] = hidden.new_zeros(1, dtype=torch.float32).expand(*hidden.shape[:-1], config.vocab_size)
        return held["logits"]

    def loss(logits: torch.Tensor, labels: Any, *args: Any, shift_labels: Any = None, **kwargs: Any) -> torch.Tensor:
        if logits is not held.get("logits"):
            raise RuntimeError(f"{type(model).__name__} changes logits before its loss: report it as an error of ours")
        ignored = kwargs.get("ignore_index", -100)
        if shift_labels is None:
            shift_labels = F.pad(labels, (0, 1), value=ignored)[:, 1:]
        places = shift_labels != ignored
        head.forward = forward
        try:
            answers = head(held.pop("hidden")[places])
        finally:
            head.forward = postponed
        return loss_function(answers[None], None, *args, shift_labels=shift_labels[places][None], **kwargs)

    before, had = vars(head).get("forward"), "forward" in vars(head)
    head.forward, model._loss_function = postponed, loss
    try:
        yield
    finally:
        if had:
            head.forward = before
        else:
            del head.forward
        if own:
            model._loss_function = loss_function
        else:
            del model._loss_function
