"""POPE: is an object in the image, yes or no; three ways of choosing the absent objects."""

from __future__ import annotations

from pathlib import Path

from llava.eval import eval_pope
from llava.eval.benchmarks.benchmark import EVAL_ZIP, Benchmark, Needed, run_needs
from llava.eval.metrics.scores import Scores
from llava.eval.runner.prompts import SHORT

QUESTIONS = "llava_pope_test.jsonl"
IMAGES = "val2014"
LABELS = "coco"
_SITE = "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
_HUB = "or the hub's lmms-lab/POPE"


def _score(folder: Path, answers: Path, partial: bool) -> Scores:
    return eval_pope.score(folder / QUESTIONS, folder / LABELS, answers, partial)


POPE = Benchmark(
    name="pope",
    title="POPE",
    folder="pope",
    questions=QUESTIONS,
    images=IMAGES,
    suffix=f"\n{SHORT}",
    answers="yes or no",
    max_new_tokens=128,
    needs=(
        *run_needs(QUESTIONS, f"{EVAL_ZIP}, {_HUB}", IMAGES, f"http://images.cocodataset.org/zips/val2014.zip, {_HUB}"),
        *(Needed(f"{LABELS}/coco_pope_{split}.json", f"{_SITE}, {_HUB}", "score") for split in eval_pope.SPLITS),
    ),
    counts=(8910, 9000),
    figure="f1",
    score=_score,
)
