"""Training losses: the answers' cross-entropy, the tower's dense labels, and the pointing loss of attention."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from llava.train.tiny.batches import Batch
from llava.train.tiny.decoder import Plan
from llava.train.tiny.labels import LABELS, UNKNOWN
from llava.train.tiny.modules import TinyLlava
from llava.train.tiny.packing import IGNORED
from llava.train.tiny.pointing import pointing_loss, verdict_loss

_LABELS_WEIGHT = 0.3
_BACKGROUND = 0.5
_HARDEST = {"character": 3.0}


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over `LABELS`, characters thrice; each the mean over objects plus half that over background.

    logits [B, V, classes], labels int8 [B, 7, 12, 12]; `UNKNOWN` ones do not count.
    """
    total = logits.new_zeros((), dtype=torch.float32)
    parts = logits.float().split(list(LABELS.values()), -1)
    for name, scores, wanted in zip(LABELS, parts, labels.unbind(1), strict=True):
        wanted = wanted.flatten(1).long()
        loss = F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), ignore_index=UNKNOWN, reduction="none")
        loss = loss * _HARDEST.get(name, 1.0)
        foreground, background = (wanted.flatten() > 0).float(), (wanted.flatten() == 0).float()
        total = total + (loss * foreground).sum() / (foreground.sum() + 1)
        total = total + _BACKGROUND * (loss * background).sum() / (background.sum() + 1)
    return total


def training_loss(
    model: TinyLlava,
    batch: Batch,
    plan: Plan,
    chosen: torch.Tensor | None,
    pointing: float = 0.0,
    heads: Sequence[str] = ("together", "together"),
    verdicts: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss to minimise and the part to show: the answers' where there are any, else the labels'.

    pointing, heads: weight of `pointing_loss`, and which heads it is about; verdicts: weight of `verdict_loss`.
    """
    features = model.tower(batch.pictures)
    labels = label_loss(model.tower.labels(features), batch.labels)
    if batch.packed is None:
        return labels, labels.detach()
    p = batch.packed
    watched: list[torch.Tensor] = []
    hidden = model(features[: len(p.ids)], p.ids, p.ends, p.turns, plan, chosen, watched if pointing else None)
    answered = p.targets != IGNORED
    answers = F.cross_entropy(model.head(hidden[answered]).float(), p.targets[answered])
    loss = answers + _LABELS_WEIGHT * labels
    if watched and batch.pointers is not None:
        loss = loss + pointing * pointing_loss(watched, batch.pointers, chosen, heads)
    if verdicts and batch.pointers is not None:
        loss = loss + verdicts * verdict_loss(hidden, model.head, batch.pointers)
    return loss, answers.detach()
