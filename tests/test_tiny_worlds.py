"""Worlds: training and evaluation share no sign and four pairs apart, labels agree with the picture's facts."""

from collections import Counter

import numpy as np
import pytest

from llava.tiny.questions import KINDS, Question, ask, names_unseen_pair
from llava.tiny.scenes import IMAGE_SIZE, render
from llava.tiny.worlds import (
    COLORS,
    EVALUATION,
    HELDOUT_NUMBERS,
    PAINTED,
    PAIRS,
    SHAPES,
    SIGN_WORDS,
    TEST,
    TRAINING,
    TUNING,
    UNSEEN_PAIRS,
    is_evaluation_sign,
)
from llava.train.tiny.labels import CHARACTERS, GRID, LABELS, PATCH, SIZES, UNKNOWN, dense_labels, owners


def scenes(world, count=80):
    return [render(np.random.default_rng(seed), 1.0, 1.0, world) for seed in TEST[:count]]


def test_training_and_evaluation_share_no_sign_and_evaluation_shows_every_pair():
    seen, evaluated = ({scene.sign for _, scene in scenes(world)} for world in (TRAINING, EVALUATION))
    assert not seen & evaluated and not any(map(is_evaluation_sign, seen))
    assert all(map(is_evaluation_sign, evaluated)) and evaluated <= {*SIGN_WORDS, *HELDOUT_NUMBERS}
    assert 0.3 < np.mean([sign.isdigit() for sign in evaluated]) < 0.7
    trained, tested = (
        {(o.color, o.shape) for _, scene in scenes(world) for o in scene.objects} for world in (TRAINING, EVALUATION)
    )
    assert trained == set(PAIRS) - set(UNSEEN_PAIRS) and tested == set(PAIRS)


def test_every_colour_and_shape_and_character_stays_known():
    assert {c for c, _ in TRAINING.pairs} == set(COLORS) and {s for _, s in TRAINING.pairs} == set(SHAPES)
    for place in range(3):
        drawn = {TRAINING.draw_sign(np.random.default_rng(seed))[place] for seed in range(1500)}
        assert drawn >= {text[place] for text in (*SIGN_WORDS, *HELDOUT_NUMBERS)}


def test_painted_objects_have_every_shape_and_no_colour_near_one_with_a_name():
    """80 apart before the paint varies (by 9 a channel) and the picture's grain is added."""
    named, shapes = np.array(list(COLORS.values())), Counter()
    for pixels, scene in scenes(PAINTED, 40):
        labels, first = dense_labels(scene), 1 + 3 + (scene.digit is not None)
        for number, thing in enumerate(scene.objects, first):
            x, y = int(thing.x), int(thing.y)
            color = pixels[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3).mean(0)
            assert thing.color == "" and np.linalg.norm(named - color, axis=1).min() > 45
            patches = owners(scene) == number
            assert patches.any() and (labels[1][patches] == UNKNOWN).all()
            assert (labels[0][patches] == 1 + SHAPES.index(thing.shape)).all()
            shapes[thing.shape] += 1
    assert set(shapes) == set(SHAPES)


def test_jitter_changes_the_card_and_nothing_else():
    changed = 0
    for seed in TEST[:10]:
        plain, scene = render(np.random.default_rng(seed), 0.0, 1.0, TUNING)
        turned, same = render(np.random.default_rng(seed), 0.0, 1.0, TRAINING)
        if scene.card_at == same.card_at and scene.digit == same.digit:
            x, y = map(int, scene.card_at)
            card = (slice(y - 17, y + 17), slice(x - 17, x + 17))
            changed += np.abs(plain[card].astype(int) - turned[card]).mean() > 5
    assert changed >= 8


def test_near_misses_differ_in_one_character_and_other_texts_occur():
    rng = np.random.default_rng(0)
    for world in (TRAINING, EVALUATION):
        differences = Counter()
        for _, scene in scenes(world, 60):
            for _ in range(4):
                said = ask("mme_text", scene, rng, yes=False, world=world).text.split('"')[1]
                assert said != scene.sign and len(said) == 3
                differences[sum(a != b for a, b in zip(said, scene.sign, strict=True))] += 1
        assert 0.6 < differences[1] / differences.total() < 0.9


@pytest.mark.parametrize(
    ("text", "answer", "unseen"),
    [
        ("Is there a green circle?", "No", True),
        ("Is the red cross above the white triangle?", "Yes", True),
        ("What color is the circle?", "green", True),
        ("What color is the circle to the left of the red square?", "blue", False),
        ("What shape is the purple object?", "square", True),
        ("Is the cross blue? Please answer yes or no.", "No", True),
        ("Is the cross red?", "Yes", False),
        ("How many green objects are there?", "2", False),
        ("What is written on the sign?", "CAT", False),
    ],
)
def test_questions_about_unseen_pairs_are_told_apart(text, answer, unseen):
    assert names_unseen_pair(Question("", text, answer)) is unseen


def test_no_training_question_is_about_an_unseen_pair():
    rng = np.random.default_rng(0)
    asked = 0
    for _, scene in scenes(TRAINING, 40):
        for kind in KINDS:
            for _ in range(3):
                if question := ask(kind, scene, rng, world=TRAINING):
                    asked += 1
                    assert not names_unseen_pair(question)
    assert asked > 1000


def test_labels_tell_what_lies_under_the_centre_of_everything():
    column, row = list(LABELS).index("column"), list(LABELS).index("row")
    for _, scene in scenes(TRAINING, 40):
        labels = dense_labels(scene)
        assert labels.shape == (len(LABELS), GRID, GRID)
        assert all(labels[n].min() >= 0 and labels[n].max() < size for n, size in enumerate(LABELS.values()))
        for o in scene.objects:
            x, y = int(o.x) // PATCH, int(o.y) // PATCH
            expected = [1 + SHAPES.index(o.shape), 1 + list(COLORS).index(o.color), 1 + SIZES.index(o.size), 0, 0]
            assert labels[:5, y, x].tolist() == expected
            assert abs(labels[column, y, x] - 1 - x) <= 1 and abs(labels[row, y, x] - 1 - y) <= 1
        x, y = (int(v) // PATCH for v in scene.sign_at)
        middle = labels[:, y, x]
        assert (middle[0], middle[3], middle[4]) == (5, 1 + CHARACTERS.index(scene.sign[1]), 2)
        shown = set(labels[3][labels[4] > 0].tolist())
        assert shown == {1 + CHARACTERS.index(c) for c in scene.sign}
        if scene.digit is not None:
            x, y = (int(v) // PATCH for v in scene.card_at)
            assert labels[[0, 3], y, x].tolist() == [6, 1 + len(CHARACTERS) + scene.digit]


def test_background_has_its_own_place():
    from llava.tiny.scenes import Scene

    labels = dense_labels(Scene((), None, None))
    assert not labels[:5].any()
    assert labels[5, 3].tolist() == list(range(1, GRID + 1)) and labels[6, :, 3].tolist() == list(range(1, GRID + 1))
    assert GRID * PATCH == IMAGE_SIZE
