"""MM-Vet: free answers, graded by a language model outside of this project (MM-Vet's notebook or evaluator)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.benchmarks.base import EVAL_ZIP, Benchmark, Conversion
from llava.eval.benchmarks.files import matched, question_row, read_question_ids, write_upload
from llava.eval.metrics.answer_files import read_answers

QUESTIONS = "llava-mm-vet.jsonl"
IMAGES = "images"
_SITE = "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip"
_HUB = "or the hub's lmms-lab/MMVet"


def submission(questions: Path | None, answers: Path, upload: Path) -> dict[str, Any]:
    """Write the grader's file: {"v1_0": answer, "v1_1": …}, in the order of the questions.

    Args:
        questions: JSONL of the questions that were asked; None takes the answers as they are.
        answers: JSONL with "question_id" (a number) and "text".
        upload: the JSON to write.

    Raises:
        UserError: unreadable or malformed input; answers that do not cover the questions.

    """
    ids = (
        [answer.question_id for answer in read_answers(answers)] if questions is None else read_question_ids(questions)
    )
    texts, counts = matched(dict.fromkeys(ids), answers)
    graded = {f"v1_{question_id}": texts[question_id] for question_id in dict.fromkeys(ids)}
    return write_upload(upload, graded, counts, indent=2)


def _write(rows, layout):
    """lmms-lab/MMVet: the questions as they stand, images named as in MM-Vet's own archive."""
    with layout.lines(QUESTIONS) as write:
        for row in rows:
            name = row["question_id"]
            if not name.startswith("v1_") or not name[3:].isdigit():
                raise UserError(f"question_id {name!r} should be v1_ and a number")
            image = layout.image_name(name, row["image"])
            layout.image(f"{IMAGES}/{image}", row["image"])
            write(question_row(int(name[3:]), image, row["question"], "conv"))


MMVET = Benchmark(
    name="mmvet",
    title="MM-Vet",
    folder="mm-vet",
    questions=QUESTIONS,
    images=IMAGES,
    max_new_tokens=1024,
    questions_from=f"{EVAL_ZIP}, {_HUB}",
    images_from=f"{_SITE}, {_HUB}",
    counts=(218,),
    figure=None,
    submit=lambda folder, answers, upload: submission(folder / QUESTIONS, answers, upload),
    conversions=(Conversion("data/test-*.parquet *.parquet", "question_id image question", _write),),
)
