"""GQA (testdev-balanced): short answers, exact match."""

from __future__ import annotations

from pathlib import Path

from llava.eval import eval_gqa
from llava.eval.benchmarks.benchmark import EVAL_ZIP, Benchmark, Needed, run_needs
from llava.eval.metrics.scores import Scores
from llava.eval.runner.prompts import SHORT

QUESTIONS = "llava_gqa_testdev_balanced.jsonl"
IMAGES = "data/images"
REFERENCES = "data/testdev_balanced_questions.json"
_SITE = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
_HUB = "or the hub's lmms-lab/GQA"


def _score(folder: Path, answers: Path, partial: bool) -> Scores:
    return eval_gqa.score(folder / REFERENCES, answers, partial)


GQA = Benchmark(
    name="gqa",
    title="GQA",
    folder="gqa",
    questions=QUESTIONS,
    images=IMAGES,
    suffix=f"\n{SHORT}",
    answers="short",
    max_new_tokens=128,
    needs=(
        *run_needs(QUESTIONS, f"{EVAL_ZIP}, {_HUB}", IMAGES, f"images.zip of {_SITE}, {_HUB}"),
        Needed(REFERENCES, f"questions1.2.zip of {_SITE}, {_HUB}", "score"),
    ),
    counts=(12578,),
    figure="accuracy",
    score=_score,
)
