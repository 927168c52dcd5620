"""Questions: every answer follows from the scene by a second reading of the words, and from the scene alone."""

import re

import numpy as np
import pytest

from llava.tiny.questions import GQA_KINDS, MME_KINDS, TEXT_KINDS, TRAINING_KINDS, YES_NO_KINDS, ask, prompt_text
from llava.tiny.scenes import Scene, SceneObject, render
from llava.tiny.worlds import TEST, TRAINING

KINDS = GQA_KINDS + MME_KINDS + TEXT_KINDS
OBJECT = r"the (?:(\w+) )?(circle|square|triangle|cross|object)"
RELATION = r"(to the left of|to the right of|above|below)"


def yes_no(value):
    return "Yes" if value else "No"


def matching(scene, color, shape):
    return [o for o in scene.objects if color in (None, o.color) and shape in ("object", o.shape)]


def far(a, b, relation):
    """Whether a stands in relation to b; asserts that it is not a close call."""
    delta = a.x - b.x if "left" in relation or "right" in relation else a.y - b.y
    assert abs(delta) > 10
    return delta < 0 if relation in ("to the left of", "above") else delta > 0


def solve(text, scene):
    """Answer a question from its words, by rules written for this test; asserts that the answer is unique."""
    text = text.removesuffix(" Please answer yes or no.")
    if text == "What is written on the sign?":
        return scene.sign
    if text == "What digit is on the card?":
        return str(scene.digit)
    if m := re.fullmatch(r'Does the sign say "([\w-]{3})"\?', text):
        return yes_no(all(said in ("-", there) for said, there in zip(m[1], scene.sign, strict=True)))
    if m := re.fullmatch(r'Is "(\w)" on the sign\?', text):
        return yes_no(m[1] in scene.sign)
    if m := re.fullmatch(rf"Is {OBJECT} (to the left or to the right of|above or below) {OBJECT}\?", text):
        (one,), (other,) = matching(scene, m[1], m[2]), matching(scene, m[4], m[5])
        if m[3] == "above or below":
            return "above" if far(one, other, "above") else "below"
        return "left" if far(one, other, "to the left of") else "right"
    if m := re.fullmatch(r"Is there a (\w+) (\w+)(?: in this image)?\?", text):
        return yes_no(matching(scene, m[1], m[2]))
    if m := re.fullmatch(r"How many (.+) are there\?", text):
        return str(count(m[1], scene))
    if m := re.fullmatch(r"Are there (\d) (.+) in this image\?", text):
        return yes_no(count(m[2], scene) == int(m[1]))
    if m := re.fullmatch(rf"What (color|shape) is {OBJECT} {RELATION} {OBJECT}\?", text):
        (other,) = matching(scene, m[5], m[6])
        (one,) = [o for o in matching(scene, m[2], m[3]) if o is not other and far(o, other, m[4])]
        return getattr(one, m[1])
    if m := re.fullmatch(rf"Is {OBJECT} {RELATION} {OBJECT}\?", text):
        (one,), (other,) = matching(scene, m[1], m[2]), matching(scene, m[4], m[5])
        return yes_no(far(one, other, m[3]))
    return about_one(text, scene)


def about_one(text, scene):
    if m := re.fullmatch(rf"What (color|shape) is {OBJECT}\?", text):
        (one,) = matching(scene, m[2], m[3])
        return getattr(one, m[1])
    m = re.fullmatch(
        rf"Is {OBJECT} (large or small|on the left or on the right|at the top or at the bottom|\w+)\?", text
    )
    (one,) = matching(scene, m[1], m[2])
    if m[3] == "large or small":
        return one.size
    if m[3].startswith("on"):
        assert abs(one.x - 84) > 10
        return "left" if one.x < 84 else "right"
    if m[3].startswith("at"):
        assert abs(one.y - 84) > 10
        return "top" if one.y < 84 else "bottom"
    return yes_no(one.color == m[3])


def count(nouns, scene):
    if nouns.endswith(" objects"):
        return sum(o.color == nouns.split()[0] for o in scene.objects)
    return sum(o.shape == {"crosses": "cross"}.get(nouns, nouns[:-1]) for o in scene.objects)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_from_the_scene(kind):
    asked = 0
    for seed in TEST[:120]:
        rng = np.random.default_rng(seed)
        _, scene = render(rng, sign_probability=0.9, card_probability=0.9)
        for _ in range(12):
            if question := ask(kind, scene, rng):
                asked += 1
                assert question.kind == kind
                assert question.answer == solve(question.text, scene), question.text
    assert asked >= 30


@pytest.mark.parametrize("kind", YES_NO_KINDS)
def test_the_wanted_answer_is_given(kind):
    rng = np.random.default_rng(1)
    _, scene = render(np.random.default_rng(TEST[0]), sign_probability=1.0)
    for yes in (True, False):
        answers = {q.answer for q in (ask(kind, scene, rng, yes=yes) for _ in range(60)) if q}
        assert answers == {yes_no(yes)}


@pytest.mark.parametrize("kind", ["rel_color", "rel_shape"])
def test_relations_can_be_made_necessary(kind):
    for seed in TEST[:60]:
        rng = np.random.default_rng(seed)
        _, scene = render(rng)
        for question in filter(None, (ask(kind, scene, rng, lone=0.0) for _ in range(20))):
            m = re.fullmatch(rf"What \w+ is {OBJECT} {RELATION} {OBJECT}\?", question.text)
            (other,) = matching(scene, m[4], m[5])
            assert len([o for o in matching(scene, m[1], m[2]) if o is not other]) >= 2


def test_close_calls_are_never_asked():
    near = Scene(
        (SceneObject("red", "circle", "small", 80, 80), SceneObject("blue", "circle", "small", 88, 88)), None, None
    )
    rng = np.random.default_rng(0)
    for kind in ("position", "verify_rel", "mme_pos", "rel_color", "attr_color", "text", "hw_digit", "mme_text"):
        assert not any(ask(kind, near, rng) for _ in range(50))


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'colour'.*attr_color"):
        ask("colour", Scene((), None, None), np.random.default_rng(0))


def test_prompt_wording_is_that_of_llavas_files():
    _, scene = render(np.random.default_rng(TEST[0]))
    question = ask("mme_exist", scene, np.random.default_rng(0))
    assert question.text.endswith(" in this image? Please answer yes or no.")
    assert prompt_text(question).endswith(" in this image?\nAnswer the question using a single word or phrase.")


def test_training_kinds_have_true_answers_of_every_sort():
    said = {kind: set() for kind in TRAINING_KINDS}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scene = render(rng, world=TRAINING)[1]
        for kind in TRAINING_KINDS:
            found = [q for q in (ask(kind, scene, rng, world=TRAINING) for _ in range(12)) if q]
            assert all(solve(q.text, scene) == q.answer for q in found)
            said[kind] |= {q.answer for q in found}
    assert said == {
        "choose_rel": {"left", "right", "above", "below"},
        "on_sign": {"Yes", "No"},
        "part_text": {"Yes", "No"},
        "count_most": {"1", "2", "3", "4", "Yes", "No"},
    }
    assert not set(TRAINING_KINDS) & set(KINDS)
