"""Conversations about a training picture: captions, questions in LLaVA's wordings, several turns."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llava.tiny.questions import (
    GQA_KINDS,
    KINDS,
    TEXT_KINDS,
    YES_NO_KINDS,
    Question,
    ask,
    prompt_text,
)
from llava.tiny.scenes import Scene
from llava.tiny.worlds import World

WEIGHTS = {
    "attr_color": 0.7,
    "attr_shape": 0.7,
    "attr_size": 0.8,
    "position": 1.0,
    "exist": 0.8,
    "count": 1.2,
    "choose_rel": 4.0,
    "verify_rel": 4.0,
    "rel_color": 3.6,
    "rel_shape": 3.6,
    "mme_exist": 0.5,
    "mme_color": 0.5,
    "mme_count": 1.0,
    "mme_pos": 3.2,
    "mme_text": 2.0,
    "on_sign": 1.5,
    "part_text": 3.0,
    "count_most": 6.0,
    "text": 2.2,
    "hw_digit": 1.2,
}
EASY_KINDS = ("attr_color", "attr_shape", "attr_size", "position", "text", "hw_digit", "exist")
ORDERS = {"left to right": (0, 1), "right to left": (0, -1), "top to bottom": (1, 1), "bottom to top": (1, -1)}
_DRAWS = 8
_LONE = 0.05


@dataclass(frozen=True)
class Turn:
    """The user's text, without the `<image>` line, and the answer."""

    text: str
    answer: str


def captions(scene: Scene, rng: np.random.Generator, count: int) -> list[Turn]:
    """Return up to four descriptions of everything in the picture, in different orders."""
    things = [(f"a {o.size} {o.color} {o.shape}", (o.x, o.y)) for o in scene.objects]
    if scene.sign:
        things.append((f"a sign {scene.sign}", scene.sign_at))
    if scene.digit is not None:
        things.append((f"a card {scene.digit}", scene.card_at))
    turns = []
    for n in rng.permutation(len(ORDERS))[:count]:
        name, (axis, direction) = list(ORDERS.items())[n]
        ordered = sorted(things, key=lambda thing: direction * thing[1][axis])
        turns.append(Turn(f"Describe the image from {name}.", ", ".join(text for text, _ in ordered) + "."))
    return turns


def draw_questions(
    scene: Scene,
    rng: np.random.Generator,
    count: int,
    world: World,
    kinds: tuple[str, ...] = KINDS,
    more: Mapping[str, float] | None = None,
) -> list[Question]:
    """Return `count` questions about a scene, different ones as far as it has them.

    Kinds are drawn by `WEIGHTS`, overridden by `more`; the answer of a yes/no question is drawn before the question, so
    both are equally frequent.
    """
    given = WEIGHTS | dict(more or {})
    weights = np.array([given[kind] for kind in kinds])
    drawn = iter(rng.choice(len(kinds), size=12 * count, p=weights / weights.sum()))
    found: dict[str, Question] = {}
    for n in drawn:
        kind = kinds[n]
        yes = bool(rng.random() < 0.5) if kind in YES_NO_KINDS else None
        for _ in range(_DRAWS):
            question = ask(kind, scene, rng, yes=yes, lone=_LONE, world=world)
            if question and question.text not in found:
                found[question.text] = question
                break
        if len(found) == count:
            break
    questions = list(found.values())
    return questions + [questions[rng.integers(len(questions))] for _ in range(count - len(questions))]


def as_turn(question: Question, rng: np.random.Generator, short: float) -> Turn:
    """Word a question: with probability `short` as LLaVA's files do (short-answer line), else bare.

    An MME question has one ending always: the short-answer line, or "Please answer yes or no." as in MME's own texts.
    """
    if rng.random() < short:
        return Turn(prompt_text(question), question.answer)
    return Turn(question.text, question.answer)


@dataclass(frozen=True)
class Style:
    """One way to ask about pictures; a batch has one style, which keeps its rows about equally long.

    kinds:
        of questions; empty: captions
    short:
        probability of the short-answer line
    turns:
        of a conversation
    more:
        weights of kinds that differ from `WEIGHTS`
    """

    kinds: tuple[str, ...]
    short: float
    turns: int = 1
    more: Mapping[str, float] | None = None


_EARLY, _LATE = ("choose_rel", "on_sign"), ("choose_rel", "part_text", "count_most")
_HARD = {
    "attr_size": 0.5,
    "position": 0.5,
    "exist": 0.5,
    "count": 1.6,
    "choose_rel": 1.5,
    "verify_rel": 1.5,
    "rel_color": 9.0,
    "rel_shape": 9.0,
    "mme_count": 2.0,
    "mme_pos": 1.5,
    "mme_text": 4.5,
    "part_text": 5.5,
    "hw_digit": 3.5,
}
STYLES = {
    "captions": Style((), 0.0),
    "simple": Style(EASY_KINDS, 0.0),
    "simple short": Style(EASY_KINDS, 1.0),
    "bare": Style(GQA_KINDS + TEXT_KINDS + _EARLY, 0.0),
    "short": Style(KINDS + _EARLY, 0.85),
    "turns": Style(KINDS + _EARLY, 0.3, turns=4),
    "hard": Style(KINDS + _LATE, 0.5, more=_HARD),
    "hard turns": Style(KINDS + _LATE, 0.3, turns=4, more=_HARD),
}


def converse(scene: Scene, rng: np.random.Generator, style: Style, count: int, world: World) -> list[list[Turn]]:
    """Return conversations about a scene: four captions, or `count` questions in conversations of `style.turns`."""
    if not style.kinds:
        return [[turn] for turn in captions(scene, rng, len(ORDERS))]
    turns = [as_turn(q, rng, style.short) for q in draw_questions(scene, rng, count, world, style.kinds, style.more)]
    return [turns[i : i + style.turns] for i in range(0, count, style.turns)]
