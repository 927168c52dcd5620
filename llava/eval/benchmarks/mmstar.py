"""MMStar: option letters on questions that cannot be answered without the image."""

from __future__ import annotations

from pathlib import Path

from llava.eval import eval_mmstar
from llava.eval.benchmarks.benchmark import Benchmark, Needed, run_needs
from llava.eval.metrics.scores import Scores
from llava.eval.runner.prompts import LETTER

QUESTIONS = "mmstar_val.jsonl"
TABLE = "mmstar_val.tsv"
IMAGES = "images"
_FROM = "the hub's Lin-Chen/MMStar, its mmstar.parquet or MMStar.tsv (llava.eval.prepare writes it)"


def _score(folder: Path, answers: Path, partial: bool) -> Scores:
    return eval_mmstar.score(folder / TABLE, answers, partial)


MMSTAR = Benchmark(
    name="mmstar",
    title="MMStar",
    folder="mmstar",
    questions=QUESTIONS,
    images=IMAGES,
    suffix=f"\n{LETTER}",
    answers="letter",
    max_new_tokens=1024,
    needs=(*run_needs(QUESTIONS, _FROM, IMAGES, _FROM), Needed(TABLE, _FROM, "score")),
    counts=(1500,),
    figure="accuracy",
    score=_score,
)
