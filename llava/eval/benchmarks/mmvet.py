"""MM-Vet: free answers, graded by a language model outside of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.eval import convert_mmvet_for_eval
from llava.eval.benchmarks.benchmark import EVAL_ZIP, Benchmark, run_needs

QUESTIONS = "llava-mm-vet.jsonl"
IMAGES = "images"
_SITE = "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip"
_HUB = "or the hub's lmms-lab/MMVet"


def _submit(folder: Path, answers: Path, upload: Path) -> dict[str, Any]:
    return convert_mmvet_for_eval.convert(answers, upload, folder / QUESTIONS)


MMVET = Benchmark(
    name="mmvet",
    title="MM-Vet",
    folder="mm-vet",
    questions=QUESTIONS,
    images=IMAGES,
    suffix="",
    answers="free",
    max_new_tokens=1024,
    needs=run_needs(QUESTIONS, f"{EVAL_ZIP}, {_HUB}", IMAGES, f"{_SITE}, {_HUB}"),
    counts=(218,),
    submit=_submit,
)
