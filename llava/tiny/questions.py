"""Questions about a scene in the manner of GQA, MME and TextVQA, each with the one answer that the scene gives.

"Object" means one of the four shapes: the sign and the card are never counted and never asked for by colour. Relations
and positions need a distance of more than 10 px along their axis, so that answers are unambiguous.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llava.tiny.scenes import IMAGE_SIZE, Scene, SceneObject
from llava.tiny.worlds import COLORS, DIGITS, EVALUATION, LETTERS, SHAPES, UNSEEN_PAIRS, World

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
YES_OR_NO = " Please answer yes or no."
PLURAL = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
RELATIONS = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, -1), "below": (0, 1)}
MARGIN = 10.0
GQA_KINDS = (
    "attr_color",
    "attr_shape",
    "attr_size",
    "position",
    "exist",
    "count",
    "verify_rel",
    "rel_color",
    "rel_shape",
)
MME_KINDS = ("mme_exist", "mme_count", "mme_pos", "mme_color", "mme_text")
TEXT_KINDS = ("text", "hw_digit")
YES_NO_KINDS = ("exist", "verify_rel", *MME_KINDS)
KINDS = GQA_KINDS + MME_KINDS + TEXT_KINDS
TRAINING_KINDS = ("choose_rel", "on_sign", "part_text", "count_most")
"""Asked in training alone: on which side something stands, without a relation to agree with; whether a character is on
the sign; whether it says "-A-", its other characters left open. What the yes/no questions about relations and signs
take is learned from these. And how many there are of the most frequent colour or shape, in the words of both counting
kinds: of questions about any, one in 25 has three."""
_DRAWS = 60


@dataclass(frozen=True)
class Question:
    """`text` without the short-answer line; `answer` as the model was trained to say it ("Yes", "red", "CAT", "3")."""

    kind: str
    text: str
    answer: str


def prompt_text(question: Question) -> str:
    """Return the question as LLaVA's files put it: without "Please answer yes or no.", with the short-answer line."""
    return question.text.removesuffix(YES_OR_NO) + SHORT_ANSWER


def holds(a: SceneObject, b: SceneObject, relation: str) -> bool | None:
    """Whether `a` stands in `relation` to `b`; None where the two are within 10 px along the relation's axis."""
    dx, dy = RELATIONS[relation]
    distance = (a.x - b.x) * dx + (a.y - b.y) * dy
    return None if abs(distance) <= MARGIN else distance > 0


def _pick(rng: np.random.Generator, values):
    return values[rng.integers(len(values))]


def _name(o: SceneObject) -> str:
    return f"{o.color} {o.shape}"


def _color_count(scene: Scene, color: str) -> int:
    return sum(o.color == color for o in scene.objects)


def _shape_count(scene: Scene, shape: str) -> int:
    return sum(o.shape == shape for o in scene.objects)


def _attribute(kind: str, scene: Scene, o: SceneObject) -> tuple[str, str] | None:
    if kind == "attr_color" and _shape_count(scene, o.shape) == 1:
        return f"What color is the {o.shape}?", o.color
    if kind == "attr_shape" and _color_count(scene, o.color) == 1:
        return f"What shape is the {o.color} object?", o.shape
    if kind == "attr_size":
        return f"Is the {_name(o)} large or small?", o.size
    return None


def _position(rng: np.random.Generator, o: SceneObject) -> tuple[str, str] | None:
    middle = IMAGE_SIZE / 2
    if rng.random() < 0.5 and abs(o.x - middle) > MARGIN:
        return f"Is the {_name(o)} on the left or on the right?", "left" if o.x < middle else "right"
    if abs(o.y - middle) > MARGIN:
        return f"Is the {_name(o)} at the top or at the bottom?", "top" if o.y < middle else "bottom"
    return None


def _existence(kind: str, scene: Scene, rng: np.random.Generator, o: SceneObject, yes: bool, world: World) -> str:
    color, shape = o.color, o.shape
    if not yes:
        shown = {(x.color, x.shape) for x in scene.objects}
        absent = [pair for pair in world.pairs if pair not in shown]
        # the colour is there and the shape is there, but not together
        confusable = [(c, s) for c, s in absent if _color_count(scene, c) and _shape_count(scene, s)]
        color, shape = _pick(rng, confusable) if confusable and rng.random() < 0.6 else _pick(rng, absent)
    return f"Is there a {color} {shape}" + ("?" if kind == "exist" else f" in this image?{YES_OR_NO}")


def _counting(kind: str, scene: Scene, rng: np.random.Generator, yes: bool) -> tuple[str, int]:
    by_color = rng.random() < 0.5
    count, names = (_color_count, list(COLORS)) if by_color else (_shape_count, list(SHAPES))
    wanted = rng.integers(0, 4)
    matching = [n for n in names if count(scene, n) == wanted]
    name = _pick(rng, matching) if matching else _pick(rng, names)
    number = count(scene, name)
    nouns = f"{name} objects" if by_color else PLURAL[name]
    if kind == "count":
        return f"How many {nouns} are there?", number
    said = number if yes else _pick(rng, [n for n in (number - 1, number + 1) if n >= 0])
    return f"Are there {said} {nouns} in this image?{YES_OR_NO}", number


def _counting_most(scene: Scene, rng: np.random.Generator, yes: bool) -> tuple[str, str]:
    """Ask how many there are of the most frequent colour or shape, or whether so many, or one more or less."""
    counts = {f"{color} objects": _color_count(scene, color) for color in COLORS}
    counts |= {PLURAL[shape]: _shape_count(scene, shape) for shape in SHAPES}
    number = max(counts.values())
    nouns = _pick(rng, [nouns for nouns, count in counts.items() if count == number])
    if rng.random() < 0.5:
        return f"How many {nouns} are there?", str(number)
    said = number if yes else number + _pick(rng, (-1, 1))
    return f"Are there {said} {nouns} in this image?{YES_OR_NO}", "Yes" if yes else "No"


def _relation_verified(kind: str, scene: Scene, rng: np.random.Generator, o: SceneObject, yes: bool) -> str | None:
    other, relation = _pick(rng, scene.objects), _pick(rng, list(RELATIONS))
    if other is o or holds(o, other, relation) is not yes:
        return None
    return f"Is the {_name(o)} {relation} the {_name(other)}?" + ("" if kind == "verify_rel" else YES_OR_NO)


def _relation_chosen(scene: Scene, rng: np.random.Generator, o: SceneObject) -> tuple[str, str] | None:
    other = _pick(rng, scene.objects)
    relation, words = _pick(rng, (("to the left of", "to the left or to the right of"), ("above", "above or below")))
    stands = None if other is o else holds(o, other, relation)
    if stands is None:
        return None
    answers = ("left", "right") if relation == "to the left of" else ("above", "below")
    return f"Is the {_name(o)} {words} the {_name(other)}?", answers[0] if stands else answers[1]


def _relation_asked(
    kind: str, scene: Scene, rng: np.random.Generator, o: SceneObject, lone: float
) -> tuple[str, str] | None:
    other, relation = _pick(rng, scene.objects), _pick(rng, list(RELATIONS))
    if other is o:
        return None
    if kind == "rel_color":
        text = f"What color is the {o.shape} {relation} the {_name(other)}?"
        candidates = [x for x in scene.objects if x is not other and x.shape == o.shape]
    else:
        text = f"What shape is the {o.color} object {relation} the {_name(other)}?"
        candidates = [x for x in scene.objects if x is not other and x.color == o.color]
    verdicts = [holds(x, other, relation) for x in candidates]
    if None in verdicts or sum(verdicts) != 1 or not holds(o, other, relation):
        return None
    if len(candidates) == 1 and rng.random() >= lone:  # the relation would not be needed to answer
        return None
    return text, o.color if kind == "rel_color" else o.shape


def _near_miss(sign: str, rng: np.random.Generator) -> str:
    """Replace one character by another of its class."""
    i = rng.integers(3)
    others = (DIGITS if i else DIGITS[1:]) if sign[i].isdigit() else LETTERS
    return sign[:i] + _pick(rng, [c for c in others if c != sign[i]]) + sign[i + 1 :]


def _character_said(sign: str, rng: np.random.Generator, yes: bool) -> str:
    return _pick(rng, sign) if yes else _pick(rng, [c for c in DIGITS + LETTERS if c not in sign])


def _part_said(sign: str, rng: np.random.Generator, yes: bool) -> str:
    """Leave one or two characters open; said wrongly, one of the others is another of its class."""
    shown = rng.permutation(3)[: int(rng.integers(1, 3))]
    said = sign
    while not yes and all(said[i] == sign[i] for i in shown):
        said = _near_miss(sign, rng)
    return "".join(character if i in shown else "-" for i, character in enumerate(said))


def _sign_said(sign: str, rng: np.random.Generator, yes: bool, world: World) -> str:
    said = sign
    if not yes:
        near = rng.random() < 0.7
        while said == sign or not world.may_say(said):
            said = _near_miss(sign, rng) if near else world.draw_sign(rng)
    return f'Does the sign say "{said}"?{YES_OR_NO}'


def ask(
    kind: str,
    scene: Scene,
    rng: np.random.Generator,
    yes: bool | None = None,
    lone: float = 0.1,
    world: World = EVALUATION,
) -> Question | None:
    """Draw one question of a kind, or None where this draw (or this scene) has no unambiguous one.

    Args:
        kind: one of GQA_KINDS, MME_KINDS, TEXT_KINDS, TRAINING_KINDS.
        scene: what the picture shows.
        rng: source of every random choice; consumed.
        yes: the answer a yes/no question shall have; None draws it.
        lone: share of the relation questions kept though only one object fits the noun and no relation is needed.
        world: what a question may name though the picture does not show it.

    Raises:
        ValueError: on an unknown kind.

    """
    if kind not in KINDS + TRAINING_KINDS:
        raise ValueError(f"unknown kind of question {kind!r}; known: {', '.join(KINDS + TRAINING_KINDS)}")
    if kind == "text":
        return Question(kind, "What is written on the sign?", scene.sign) if scene.sign else None
    if kind == "hw_digit":
        return None if scene.digit is None else Question(kind, "What digit is on the card?", str(scene.digit))
    yes = rng.random() < 0.5 if yes is None else yes
    verdict = "Yes" if yes else "No"
    if kind in ("on_sign", "part_text", "mme_text") and not scene.sign:
        return None
    if kind == "on_sign":
        return Question(kind, f'Is "{_character_said(scene.sign, rng, yes)}" on the sign?', verdict)
    if kind == "part_text":
        return Question(kind, f'Does the sign say "{_part_said(scene.sign, rng, yes)}"?', verdict)
    if kind == "mme_text":
        return Question(kind, _sign_said(scene.sign, rng, yes, world), verdict)
    if not scene.objects:
        return None
    o = _pick(rng, scene.objects)
    if kind in ("attr_color", "attr_shape", "attr_size"):
        found = _attribute(kind, scene, o)
    elif kind == "position":
        found = _position(rng, o)
    elif kind in ("exist", "mme_exist"):
        found = _existence(kind, scene, rng, o, yes, world), verdict
    elif kind == "mme_color":
        others = [c for c in COLORS if c != o.color and (c, o.shape) in world.pairs]
        color = o.color if yes else _pick(rng, others)
        found = (f"Is the {o.shape} {color}?{YES_OR_NO}", verdict) if _shape_count(scene, o.shape) == 1 else None
    elif kind in ("count", "mme_count"):
        text, number = _counting(kind, scene, rng, yes)
        found = text, str(number) if kind == "count" else verdict
    elif kind == "count_most":
        found = _counting_most(scene, rng, yes)
    elif kind in ("verify_rel", "mme_pos"):
        text = _relation_verified(kind, scene, rng, o, yes)
        found = (text, verdict) if text else None
    elif kind == "choose_rel":
        found = _relation_chosen(scene, rng, o)
    else:
        found = _relation_asked(kind, scene, rng, o, lone)
    return Question(kind, *found) if found else None


def questions_about(scene: Scene, rng: np.random.Generator, world: World = EVALUATION) -> Iterator[Question]:
    """Yield up to two different questions of every kind that the scene allows; of yes/no kinds one each, or none."""
    for kind in KINDS:
        polarities = (True, False) if kind in YES_NO_KINDS else (None, None)
        found: dict[str, Question] = {}
        for yes in polarities:
            draws = (ask(kind, scene, rng, yes=yes, lone=0.0, world=world) for _ in range(_DRAWS))
            question = next((q for q in draws if q and q.text not in found), None)
            if question:
                found[question.text] = question
        if kind not in YES_NO_KINDS or len(found) == 2:
            yield from found.values()


def names_unseen_pair(question: Question) -> bool:
    """Whether answering takes an object of a colour and shape that training never showed together."""
    pairs = re.findall(rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})", question.text)
    if m := re.match(rf"What color is the ({'|'.join(SHAPES)})", question.text):
        pairs.append((question.answer, m[1]))
    elif m := re.match(rf"What shape is the ({'|'.join(COLORS)})", question.text):
        pairs.append((m[1], question.answer))
    elif m := re.match(rf"Is the ({'|'.join(SHAPES)}) ({'|'.join(COLORS)})", question.text):
        pairs.append((m[2], m[1]))
    return any(pair in UNSEEN_PAIRS for pair in pairs)
