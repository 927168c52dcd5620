"""Scenes: the same seed gives the recorded picture, and the picture shows what the scene says."""

import hashlib
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from scene_fixtures import PATH, PIXELS

from llava.tiny.scenes import IMAGE_SIZE, RADIUS, handwritten_digits, render
from llava.tiny.worlds import (
    BENCHMARK,
    COLORS,
    EVALUATION,
    SHAPES,
    SPLITS,
    TEST,
    TRAINING,
    TUNE,
    TUNING,
    is_evaluation_sign,
    picture_seeds,
)

RECORDED = [
    (0, EVALUATION, 0.6, 0.35, "56131d4a15a7130e", "JET", None, ("red", "cross", "large", 69.950683, 29.136778)),
    (1, TRAINING, 1.0, 1.0, "a8c80556e96e8c32", "KAD", 6, ("blue", "circle", "small", 52.939490, 33.196930)),
    (
        2_000_000_000,
        EVALUATION,
        1.0,
        1.0,
        "236122bc30820b38",
        "BEE",
        1,
        ("red", "circle", "small", 121.255946, 93.340864),
    ),
    (
        1_000_000_000,
        TUNING,
        1.0,
        1.0,
        "d84351bfb96fca8c",
        "BJF",
        0,
        ("yellow", "cross", "large", 138.688706, 48.175616),
    ),
]


def scenes(count, **options):
    return [render(np.random.default_rng(seed), **options) for seed in TEST[:count]]


@pytest.mark.parametrize(("seed", "world", "signs", "cards", "sha", "sign", "digit", "first"), RECORDED)
def test_a_seed_gives_the_recorded_picture(seed, world, signs, cards, sha, sign, digit, first):
    """Benchmarks, and what was measured on them, stay comparable while this holds."""
    pixels, scene = render(np.random.default_rng(seed), signs, cards, world)
    o = scene.objects[0]
    assert (scene.sign, scene.digit) == (sign, digit)
    assert (o.color, o.shape, o.size) == first[:3]
    assert (o.x, o.y) == pytest.approx(first[3:], abs=1e-5)
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == sha


def test_the_documentations_picture_is_the_scene_that_the_tests_ask_about():
    with Image.open(PATH) as image:
        assert np.array_equal(np.asarray(image), PIXELS)


def test_the_picture_has_the_named_colour_at_every_centre():
    for pixels, scene in scenes(60):
        for o in scene.objects:
            x, y = round(o.x), round(o.y)
            patch = np.median(pixels[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3), axis=0)
            nearest = min(COLORS, key=lambda name: np.abs(patch - COLORS[name]).sum())
            assert nearest == o.color


def test_objects_are_distinct_named_and_apart():
    seen = set()
    for _, scene in scenes(200):
        assert 1 <= len(scene.objects) <= 5
        assert len({(o.color, o.shape) for o in scene.objects}) == len(scene.objects)
        for o in scene.objects:
            assert o.color in COLORS and o.shape in SHAPES and o.size in RADIUS
            assert RADIUS[o.size] <= min(o.x, o.y) and max(o.x, o.y) <= IMAGE_SIZE - RADIUS[o.size]
        for a, b in combinations(scene.objects, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > 0.9 * (RADIUS[a.size] + RADIUS[b.size])
        seen |= {(o.color, o.shape, o.size) for o in scene.objects}
    assert len(seen) == len(COLORS) * len(SHAPES) * len(RADIUS)


def test_signs_and_cards_come_as_asked():
    for _, scene in scenes(40, sign_probability=1.0, card_probability=1.0):
        assert is_evaluation_sign(scene.sign) and len(scene.sign) == 3
        assert scene.digit in range(10)
    for _, scene in scenes(40, sign_probability=0.0, card_probability=0.0):
        assert scene.sign is None and scene.digit is None


def test_digit_splits_are_disjoint_parts_of_one_set():
    train, heldout = handwritten_digits("train"), handwritten_digits("heldout")
    assert (len(train[0]), len(heldout[0])) == (len(train[1]), len(heldout[1])) == (1500, 297)
    assert not {image.tobytes() for image in train[0]} & {image.tobytes() for image in heldout[0]}
    with pytest.raises(ValueError, match="'train' or 'heldout'"):
        handwritten_digits("test")


def test_seed_ranges_share_nothing():
    for a, b in combinations((TUNE, BENCHMARK, TEST), 2):
        assert a.stop <= b.start or b.stop <= a.start
    blocks = [picture_seeds(split, seed, n) for split in SPLITS for seed in (0, 1, 99) for n in (0, 1, 2, 9)]
    assert all(a.stop <= b.start or b.stop <= a.start for a, b in combinations(blocks, 2))
    for split, span in SPLITS.items():
        assert picture_seeds(split, 0, 0).start == span.start and picture_seeds(split, 99, 9).stop == span.stop


@pytest.mark.parametrize("bad", [("train", 0, 0), ("tune", 100, 0), ("tune", -1, 0), ("benchmark", 0, 10)])
def test_seeds_outside_the_ranges_are_refused(bad):
    with pytest.raises(ValueError, match="must be|known"):
        picture_seeds(*bad)
