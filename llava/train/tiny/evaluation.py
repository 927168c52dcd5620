"""Held-out accuracy while training: scenes of the test seeds, unseen digits, pairs and sign strings, exact match.

An answer counts when the arg max is right at every one of its tokens and at `</s>`, the true tokens given: greedy
decoding says exactly the answer in the same cases.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llava.tiny.questions import KINDS, Question, names_unseen_pair, prompt_text, questions_about
from llava.tiny.scenes import render
from llava.tiny.worlds import EVALUATION, TEST
from llava.train.tiny.batches import Batch
from llava.train.tiny.conversations import Turn
from llava.train.tiny.decoder import DENSE, Plan
from llava.train.tiny.modules import TinyLlava
from llava.train.tiny.packing import IGNORED, pack

_IMAGES = 8


@dataclass(frozen=True)
class Answered:
    """One question and whether it was answered right; `turn` from 0, its place in the conversation."""

    question: Question
    turn: int
    right: bool


@dataclass(frozen=True)
class Example:
    """A picture, uint8 [H, W, 3], and the questions asked about it."""

    pixels: np.ndarray
    questions: tuple[Question, ...]


def draw_examples(count: int, first: int = 0) -> list[Example]:
    """Draw `count` held-out scenes with about 24 questions each, from test seed number `first` on."""
    examples = []
    for seed in TEST[first : first + count]:
        rng = np.random.default_rng(seed)
        pixels, scene = render(rng, world=EVALUATION)
        examples.append(Example(pixels, tuple(questions_about(scene, rng, EVALUATION))))
    return examples


def _conversations(example: Example, turns: int, number: int) -> list[list[Question]]:
    order = np.random.default_rng(number).permutation(len(example.questions))
    shuffled = [example.questions[i] for i in order]
    return [shuffled[i : i + turns] for i in range(0, len(shuffled) - turns + 1, turns)]


@torch.no_grad()
def answer_all(
    model: TinyLlava,
    examples: Sequence[Example],
    plan: Plan = DENSE,
    turns: int = 1,
    precision: torch.dtype | None = None,
) -> list[Answered]:
    """Ask every question, `turns` of them in one conversation, in a fixed random order; what is left over is not asked.

    precision: autocast's; None: float32.
    """
    device = model.embed.weight.device
    answered = []
    for start in range(0, len(examples), _IMAGES):
        part = [example for example in examples[start : start + _IMAGES] if len(example.questions) >= turns]
        asked = [_conversations(example, turns, start + n) for n, example in enumerate(part)]
        most = max(map(len, asked))
        filled = [conversations + [conversations[0]] * (most - len(conversations)) for conversations in asked]
        packed = pack(
            [[[Turn(prompt_text(q), q.answer) for q in c] for c in conversations] for conversations in filled]
        )
        pictures = torch.from_numpy(np.stack([example.pixels for example in part]))
        batch = Batch(pictures, torch.empty(0), packed).to(device)
        p = batch.packed
        with torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None):
            hidden = model(model.tower(batch.pictures), p.ids, p.ends, p.turns, plan)
            said = model.head(hidden).argmax(-1)
        right = (said == p.targets).cpu()
        targets, turn_of = packed.targets, packed.turns
        for b, conversations in enumerate(asked):
            for k, conversation in enumerate(conversations):
                for n, question in enumerate(conversation):
                    here = (turn_of[b, k] == n) & (targets[b, k] != IGNORED)
                    answered.append(Answered(question, n, bool(right[b, k][here].all())))
    return answered


def share(answered: Iterable[Answered]) -> float | None:
    """Return the share answered right, None of no question."""
    rights = [a.right for a in answered]
    return sum(rights) / len(rights) if rights else None


def by_kind(answered: Sequence[Answered]) -> dict[str, float]:
    """Return the share answered right by kind, in the order of the kinds."""
    found = {kind: share(a for a in answered if a.question.kind == kind) for kind in KINDS}
    return {kind: value for kind, value in found.items() if value is not None}


def mean(answered: Sequence[Answered]) -> float:
    """Return the mean over the kinds, each weighing the same."""
    shares = by_kind(answered).values()
    return sum(shares) / len(shares)


def on_unseen_pairs(answered: Sequence[Answered]) -> list[Answered]:
    """Return the questions that take an object whose colour and shape training never showed together."""
    return [a for a in answered if names_unseen_pair(a.question)]
