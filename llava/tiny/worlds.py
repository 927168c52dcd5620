"""The contents of scenes in training, in tuning, and in every measurement.

`TRAINING` and `EVALUATION` divide what can be seen: four of the 24 pairs of colour and shape (each colour and each
shape stays known from other pairs), every sign of `EVALUATION` (49 words, 129 numbers) and 297 handwritten digits never
appear in training, neither in pictures nor in questions. `TUNING` is training's world without the distortion of digits,
for choosing thresholds. `PAINTED` is for training alone: objects in colours that have no name.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

TUNE = range(1_000_000_000, 2_000_000_000)
BENCHMARK = range(2_000_000_000, 3_000_000_000)
TEST = range(3_000_000_000, 4_000_000_000)
PICTURE = TEST[1083]
"""Of docs/scene.png, which the documentation, the notebooks and the tests ask about."""

SPLITS = {"tune": TUNE, "benchmark": BENCHMARK}
_PER_SET = 10_000_000
_PER_BENCHMARK = 1_000_000


def picture_seeds(split: str, number: int, benchmark: int) -> range:
    """Return the seeds of one benchmark's pictures.

    Args:
        split: "benchmark", or "tune" for finding thresholds (pictures and digits that may be looked at while choosing).
        number: which of the 100 disjoint sets of that split (the command line's `--seed`).
        benchmark: 0, 1, 2, …, 9: disjoint pictures for every benchmark of a set.

    Raises:
        ValueError: on an unknown split, or a number outside 0–99.

    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    sets = len(SPLITS[split]) // _PER_SET
    if not 0 <= number < sets or not 0 <= benchmark < _PER_SET // _PER_BENCHMARK:
        raise ValueError(f"seed must be 0 to {sets - 1} and benchmark 0 to 9, got {number} and {benchmark}")
    start = SPLITS[split].start + number * _PER_SET + benchmark * _PER_BENCHMARK
    return range(start, start + _PER_BENCHMARK)


Digits = Literal["train", "heldout"]
Pair = tuple[str, str]

COLORS = {
    "red": (215, 45, 40),
    "green": (45, 165, 60),
    "blue": (50, 85, 220),
    "yellow": (235, 210, 50),
    "purple": (150, 60, 185),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
PAIRS: tuple[Pair, ...] = tuple(product(COLORS, SHAPES))
UNSEEN_PAIRS: tuple[Pair, ...] = (("green", "circle"), ("purple", "square"), ("white", "triangle"), ("blue", "cross"))
# fmt: off
SIGN_WORDS = (
    "CAT", "DOG", "SUN", "BUS", "CAR", "TAX", "BAR", "ZOO", "GYM", "SPA", "INN", "PUB", "ICE", "TEA",
    "PIE", "JAM", "HAM", "EGG", "FIG", "NUT", "OWL", "BEE", "FOX", "RAT", "HEN", "COW", "PIG", "ELK",
    "KEY", "MAP", "PEN", "BOX", "CUP", "JAR", "VAN", "JET", "SKI", "MUD", "SKY", "SEA", "OIL", "GAS",
    "TOY", "ART", "INK", "WAX", "HUB", "LAB", "MIX",
)
# fmt: on
_APART, _VIVID = 80, 60
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"
HELDOUT_NUMBERS = tuple(str(n) for n in range(100, 1000) if n % 7 == 3)


def is_evaluation_sign(text: str) -> bool:
    """Whether a sign's text belongs to the evaluation: one of its words or numbers."""
    return text in SIGN_WORDS or (len(text) == 3 and text.isdigit() and int(text) % 7 == 3)


def draw_paint(rng: np.random.Generator) -> np.ndarray:
    """Draw a colour that has no name, RGB in 0–255: at least 80 away from each that has one, and not a grey."""
    named = np.array(list(COLORS.values()))
    while True:
        paint = rng.uniform(0, 255, 3)
        if np.ptp(paint) >= _VIVID and np.linalg.norm(named - paint, axis=1).min() >= _APART:
            return paint


@dataclass(frozen=True)
class World:
    """What a scene may show.

    pairs:
        colour and shape that an object may have
    signs:
        "evaluation" its 49 words and 129 numbers · "training" any other three letters and numbers of three digits
    digits:
        which of the handwritten digits a card may show
    jitter:
        whether handwritten digits are slanted, scaled, turned and shifted a little
    painted:
        whether every object has a paint of its own (`draw_paint`) and none of the colours with a name
    """

    pairs: tuple[Pair, ...]
    signs: Literal["training", "evaluation"]
    digits: Digits
    jitter: bool = False
    painted: bool = False

    def draw_sign(self, rng: np.random.Generator) -> str:
        """Draw the three characters of a sign: half of them numbers, half letters."""
        number = rng.random() < 0.5
        if self.signs == "evaluation":
            source = HELDOUT_NUMBERS if number else SIGN_WORDS
            return source[rng.integers(len(source))]
        while True:
            drawn = rng.integers(100, 1000) if number else rng.integers(len(LETTERS), size=3)
            text = str(drawn) if number else "".join(LETTERS[i] for i in drawn)
            if not is_evaluation_sign(text):
                return text

    def may_say(self, text: str) -> bool:
        """Whether a question may quote this sign text."""
        return self.signs == "evaluation" or not is_evaluation_sign(text)


TRAINING = World(tuple(p for p in PAIRS if p not in UNSEEN_PAIRS), "training", "train", jitter=True)
EVALUATION = World(PAIRS, "evaluation", "heldout")
TUNING = replace(TRAINING, jitter=False)
PAINTED = replace(TRAINING, pairs=PAIRS, painted=True)
WORLD_OF = {"benchmark": EVALUATION, "tune": TUNING}
"""Worlds of the mini benchmarks by split (see `llava.tiny.worlds`)."""
