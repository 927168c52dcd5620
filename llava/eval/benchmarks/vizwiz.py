"""VizWiz: short answers to blind people's questions; test is scored by the evaluation server, val here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llava.eval import convert_vizwiz_for_submission, eval_vizwiz
from llava.eval.benchmarks.benchmark import EVAL_ZIP, Benchmark, Needed, run_needs
from llava.eval.metrics.scores import Scores
from llava.eval.runner.prompts import SHORT, UNANSWERABLE

TEST = "llava_test.jsonl"
VAL = "llava_val.jsonl"
VAL_REFERENCES = "val.json"
_SITE = "https://vizwiz.cs.colorado.edu/VizWiz_final"
_HUB = "or the hub's lmms-lab/VizWiz-VQA"


def _submit(folder: Path, answers: Path, upload: Path) -> dict[str, Any]:
    return convert_vizwiz_for_submission.convert(folder / TEST, answers, upload)


def _score(folder: Path, answers: Path, partial: bool) -> Scores:
    return eval_vizwiz.score(folder / VAL_REFERENCES, folder / VAL, answers, partial)


VIZWIZ = Benchmark(
    name="vizwiz",
    title="VizWiz test",
    folder="vizwiz",
    questions=TEST,
    images="test",
    suffix=f"\n{UNANSWERABLE}\n{SHORT}",
    answers="short",
    max_new_tokens=128,
    needs=run_needs(TEST, f"{EVAL_ZIP}, {_HUB} (test)", "test", f"{_SITE}/images/test.zip, {_HUB}"),
    counts=(8000,),
    submit=_submit,
)
VIZWIZ_VAL = replace(
    VIZWIZ,
    name="vizwiz_val",
    title="VizWiz val",
    questions=VAL,
    images="val",
    needs=(
        *run_needs(VAL, f"{_SITE}/vqa_data/Annotations.zip, {_HUB} (val)", "val", f"{_SITE}/images/val.zip, {_HUB}"),
        Needed(VAL_REFERENCES, f"{_SITE}/vqa_data/Annotations.zip, {_HUB} (val)", "score"),
    ),
    counts=(4319,),
    figure="accuracy",
    score=_score,
    submit=None,
)
