"""VQAv2: short answers; test-dev is scored by the evaluation server, val here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from llava.eval import convert_vqav2_for_submission, eval_vqav2
from llava.eval.benchmarks.benchmark import EVAL_ZIP, Benchmark, Needed, run_needs
from llava.eval.metrics.scores import Scores
from llava.eval.runner.prompts import SHORT

TEST_DEV = "llava_vqav2_mscoco_test-dev2015.jsonl"
TEST = f"{convert_vqav2_for_submission.FULL_SPLIT}.jsonl"
VAL = "llava_vqav2_mscoco_val2014.jsonl"
VAL_REFERENCES = "v2_mscoco_val2014_annotations.json"
_COCO = "http://images.cocodataset.org/zips"
_HUB = "or the hub's lmms-lab/VQAv2"


def _submit(folder: Path, answers: Path, upload: Path) -> dict[str, Any]:
    return convert_vqav2_for_submission.convert(folder / TEST_DEV, folder / TEST, answers, upload)


def _score(folder: Path, answers: Path, partial: bool) -> Scores:
    return eval_vqav2.score(folder / VAL_REFERENCES, answers, partial)


VQAV2 = Benchmark(
    name="vqav2",
    title="VQAv2 test-dev",
    folder="vqav2",
    questions=TEST_DEV,
    images="test2015",
    suffix=f"\n{SHORT}",
    answers="short",
    max_new_tokens=128,
    needs=(
        *run_needs(TEST_DEV, f"{EVAL_ZIP}, {_HUB} (testdev)", "test2015", f"{_COCO}/test2015.zip, {_HUB}"),
        Needed(TEST, f"{EVAL_ZIP}, {_HUB} (test)", "score"),
    ),
    counts=(107394,),
    submit=_submit,
)
VQAV2_VAL = replace(
    VQAV2,
    name="vqav2_val",
    title="VQAv2 val",
    questions=VAL,
    images="val2014",
    needs=(
        *run_needs(VAL, "the hub's lmms-lab/VQAv2 (validation)", "val2014", f"{_COCO}/val2014.zip, {_HUB}"),
        Needed(VAL_REFERENCES, f"https://visualqa.org/download.html, {_HUB} (validation)", "score"),
    ),
    counts=(214354,),
    figure="accuracy",
    score=_score,
    submit=None,
)
