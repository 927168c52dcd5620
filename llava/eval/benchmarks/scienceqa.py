"""ScienceQA (test), the questions with an image: option letters."""

from __future__ import annotations

from pathlib import Path

from llava.eval import eval_science_qa
from llava.eval.benchmarks.benchmark import EVAL_ZIP, Benchmark, Needed, run_needs
from llava.eval.metrics.scores import Scores
from llava.eval.runner.prompts import LETTER

LLAVA_QUESTIONS = "llava_test_CQM-A.json"
"""LLaVA's own file, with the questions without an image; a JSON list, not the loader's JSONL."""
QUESTIONS = "llava_test_CQM-A_img.jsonl"
IMAGES = "images/test"
PROBLEMS = ("problems.json", "pid_splits.json")
_SITE = "https://github.com/lupantech/ScienceQA (data/scienceqa)"
_HUB = "or the hub's lmms-lab/ScienceQA"


def _score(folder: Path, answers: Path, partial: bool) -> Scores:
    return eval_science_qa.score(folder, answers, partial, img_only=True)


SCIENCEQA = Benchmark(
    name="scienceqa",
    title="ScienceQA-IMG",
    folder="scienceqa",
    questions=QUESTIONS,
    images=IMAGES,
    suffix=f"\n{LETTER}",
    answers="letter",
    max_new_tokens=1024,
    needs=(
        *run_needs(QUESTIONS, f"{EVAL_ZIP} (its {LLAVA_QUESTIONS}), {_HUB}", IMAGES, f"{_SITE}, {_HUB}"),
        *(Needed(file, f"{_SITE}, {_HUB}", "score") for file in PROBLEMS),
    ),
    counts=(2017,),
    figure="img_accuracy",
    score=_score,
)
