"""MME: yes or no on pairs of questions, 14 tasks."""

from __future__ import annotations

from pathlib import Path

from llava.eval import eval_mme
from llava.eval.benchmarks.benchmark import EVAL_ZIP, Benchmark, run_needs
from llava.eval.metrics.scores import Scores
from llava.eval.runner.prompts import SHORT

QUESTIONS = "llava_mme.jsonl"
RELEASE = eval_mme.RELEASE_FOLDER
_SITE = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"
_HUB = "or the hub's lmms-lab/MME"


def _score(folder: Path, answers: Path, partial: bool) -> Scores:
    return eval_mme.score(folder / QUESTIONS, answers, partial)


MME = Benchmark(
    name="mme",
    title="MME",
    folder="MME",
    questions=QUESTIONS,
    images=RELEASE,
    suffix=f"\n{SHORT}",
    answers="yes or no",
    max_new_tokens=128,
    # The release folder holds the images and, beside them, the references.
    needs=run_needs(QUESTIONS, f"{EVAL_ZIP}, {_HUB}", RELEASE, f"MME's authors, {_SITE}, {_HUB}"),
    counts=(2374,),
    figure="perception",
    unit="of 2000",
    score=_score,
)
