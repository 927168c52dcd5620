"""What a trained model can do, measured once at the end on held-out scenes; the model card is written from it."""

from collections.abc import Sequence

from tqdm import tqdm

from llava.train.tiny import evaluation
from llava.train.tiny.decoder import DENSE, Plan
from llava.train.tiny.evaluation import Answered, Example
from llava.train.tiny.run import Trainer

_FIRST = 2_000
_TURNS = 3
_KEPT = 5


def plans(layers: int) -> dict[str, Plan]:
    """Return the plans that the report compares, for a decoder of `layers` layers.

    `paper`: shallow layers merged and skipped, five tokens after the filter layer, nothing from two thirds on.
    """
    shallow, deep, quarter = layers // 3, layers * 2 // 3, layers // 4
    first, last = frozenset(range(shallow)), frozenset(range(deep, layers))
    return {
        "dense": DENSE,
        "image-blind": Plan(blind=frozenset(range(layers))),
        "first quarter masked": Plan(blind=frozenset(range(quarter))),
        "last quarter masked": Plan(blind=frozenset(range(layers - quarter, layers))),
        "paper": Plan((first | last) - {0}, True, first, shallow, _KEPT),
        "paper, none kept": Plan((first | last) - {0}, True, first, shallow, 0),
    }


def _summary(answered: Sequence[Answered]) -> dict:
    return {"mean": evaluation.mean(answered), "kinds": evaluation.by_kind(answered), "questions": len(answered)}


def measure(trainer: Trainer, scenes: int) -> dict:
    """Return accuracies by plan and kind, on unseen pairs of colour and shape, and by turn of a conversation.

    The scenes are others than those of the learning curve. Shows a bar on standard error.
    """
    examples: list[Example] = evaluation.draw_examples(scenes, _FIRST)
    precision = trainer.settings.autocast
    report: dict = {"scenes": scenes}
    compared = plans(len(trainer.model.layers))
    for name, plan in tqdm(compared.items(), desc=f"{trainer.recipe}: measuring", unit="plan"):
        answered = evaluation.answer_all(trainer.model, examples, plan, precision=precision)
        report[name] = _summary(answered)
        if name == "dense":
            unseen = evaluation.on_unseen_pairs(answered)
            report["unseen pairs"] = _summary(unseen) if unseen else None
    talked = evaluation.answer_all(trainer.model, examples, turns=_TURNS, precision=precision)
    report["turns"] = [evaluation.share(a for a in talked if a.turn == n) for n in range(_TURNS)]
    return report
