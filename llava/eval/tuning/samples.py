"""Statistics of a calibration: question split, number of answers that may differ, held-out agreement.

No image is in two parts of the questions.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom, binomtest

from llava.eval.runner.questions import Question
from llava.eval.runner.run import Run

LEVEL = 0.95
PASSING = 1 / 6


def split(
    questions: Sequence[Question], samples: int, confirm: int, held_out: int, seed: int
) -> tuple[list[int], list[int], list[int]]:
    """Return indices into `questions`, in file order: samples, and at most `confirm` and `held_out` of other images.

    Images are drawn at random, and of each as many questions as it takes: one, where there are enough images.

    Raises `ValueError` where the images do not suffice for the samples and a held-out question.
    """
    by_image: dict[str, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        if question.image is not None:
            by_image[question.image].append(place)
    names = list(by_image)
    random = np.random.default_rng(seed)
    order = [names[place] for place in random.permutation(len(names))]
    total = sum(map(len, by_image.values()))
    if total < samples + 1 or len(order) < 2:
        raise ValueError(
            f"--samples {samples} leaves nothing for the claim: the file has {total} questions on {len(order)} images; "
            "give fewer samples, or more questions"
        )
    share = samples / (samples + confirm + held_out)
    first = min(len(order) - 1, max(1, round(share * len(order))))
    while first < len(order) - 1 and sum(len(by_image[name]) for name in order[:first]) < samples:
        first += 1
    rest = len(order) - first
    second = first + min(rest - 1, round(rest * confirm / (confirm + held_out)))
    parts = ((order[:first], samples), (order[first:second], confirm), (order[second:], held_out))
    chosen, confirming, kept = (sorted(_pick([by_image[name] for name in names], n, random)) for names, n in parts)
    if len(chosen) < samples:
        raise ValueError(
            f"--samples {samples}: only {len(chosen)} questions are left when one of {len(order)} images is kept for "
            "the claim; give fewer samples, or more questions"
        )
    return chosen, confirming, kept


def _pick(images: Sequence[Sequence[int]], count: int, random: np.random.Generator) -> list[int]:
    """Return up to `count` places: a first question of each image, then a second, and so on."""
    shuffled = [random.permutation(places).tolist() for places in images]
    rounds = max(map(len, shuffled), default=0)
    turns = [places[turn] for turn in range(rounds) for places in shuffled if turn < len(places)]
    return turns[:count]


def write_questions(path: Path, questions: Sequence[Question]) -> None:
    """Write a LLaVA question file."""
    rows = [{"question_id": one.question_id, "image": one.image, "text": one.text} for one in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def exact_interval(count: int, total: int) -> tuple[float, float]:
    """Clopper and Pearson's 95% interval of a share (Biometrika 26, 1934): it covers at least 95%, for any share."""
    interval = binomtest(count, total).proportion_ci(LEVEL, method="exact")
    return float(interval.low), float(interval.high)


def max_disagreements(samples: int, agreement: float) -> int:
    """Largest number of differing answers such that a config of just this agreement passes with probability ≤ 1/6.

    That is about one standard error below what the target allows; 0 where even no difference is more likely than that.
    """
    return max(0, int(binom.ppf(PASSING, samples, 1 - agreement)) - 1) if agreement < 1 else 0


def held_out_agreement(dense: Run, pruned: Run) -> dict[str, Any]:
    """Agreement of two runs in [0, 1], its interval, and the costs of the pruned run as shares of dense."""
    found, costs = pruned.agreement(dense, dense.answers), pruned.costs
    return {
        "questions": found.count,
        "equal": found.equal,
        "agreement": found.equal / found.count,
        "interval": [*exact_interval(found.equal, found.count)],
        "flops": costs.flops_share,
        "visual_flops": costs.visual_flops_share,
        "kv": costs.kv_share,
        "kept_tokens": round(costs.mean_kept, 3),
    }
