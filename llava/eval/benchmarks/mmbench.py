"""MMBench (dev, English): option letters, each question also with its options rotated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.eval import convert_mmbench_for_submission, eval_mmbench
from llava.eval.benchmarks.benchmark import Benchmark, Needed, run_needs
from llava.eval.metrics.scores import Scores
from llava.eval.runner.prompts import LETTER

SPLIT = "mmbench_dev_20230712"
QUESTIONS = f"{SPLIT}.jsonl"
TABLE = f"{SPLIT}.tsv"
IMAGES = f"images/{SPLIT}"
_SITE = f"https://download.openmmlab.com/mmclassification/datasets/mmbench/{TABLE}"
_FROM = f"{_SITE}, or the hub's lmms-lab/MMBench_EN (llava.eval.prepare writes it)"


def _score(folder: Path, answers: Path, partial: bool) -> Scores:
    return eval_mmbench.score(folder / TABLE, answers, partial)


def _submit(folder: Path, answers: Path, upload: Path) -> dict[str, Any]:
    return convert_mmbench_for_submission.convert(folder / TABLE, answers, upload)


MMBENCH = Benchmark(
    name="mmbench",
    title="MMBench dev",
    folder="mmbench",
    questions=QUESTIONS,
    images=IMAGES,
    suffix=f"\n{LETTER}",
    answers="letter",
    max_new_tokens=1024,
    needs=(*run_needs(QUESTIONS, _FROM, IMAGES, _FROM), Needed(TABLE, _FROM, "score")),
    counts=(4377, 4329),  # LLaVA's table of July 2023, and the later one
    figure="circular",
    score=_score,
    submit=_submit,
    upload_suffix=".xlsx",
)
