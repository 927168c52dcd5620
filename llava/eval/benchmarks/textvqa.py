"""TextVQA (validation): short answers with OCR tokens in the prompt, soft accuracy."""

from __future__ import annotations

from pathlib import Path

from llava.eval import eval_textvqa
from llava.eval.benchmarks.benchmark import EVAL_ZIP, Benchmark, Needed, run_needs
from llava.eval.metrics.scores import Scores
from llava.eval.runner.prompts import SHORT

QUESTIONS = "llava_textvqa_val_v051_ocr.jsonl"
IMAGES = "train_images"
REFERENCES = "TextVQA_0.5.1_val.json"
_SITE = "https://dl.fbaipublicfiles.com/textvqa"
_HUB = "or the hub's lmms-lab/textvqa"


def _score(folder: Path, answers: Path, partial: bool) -> Scores:
    return eval_textvqa.score(folder / REFERENCES, answers, partial)


TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA",
    folder="textvqa",
    questions=QUESTIONS,
    images=IMAGES,
    suffix=f"\n{SHORT}",
    answers="short",
    max_new_tokens=128,
    needs=(
        *run_needs(QUESTIONS, f"{EVAL_ZIP}, {_HUB}", IMAGES, f"{_SITE}/images/train_val_images.zip, {_HUB}"),
        Needed(REFERENCES, f"{_SITE}/data/TextVQA_0.5.1_val.json, {_HUB}", "score"),
    ),
    counts=(5000,),
    figure="accuracy",
    score=_score,
)
