"""GQA (testdev-balanced): short answers, exact match, overall and by question type.

The answer loses its final periods and its capitals, as LLaVA's conversion for GQA does, and must then equal the
reference exactly, as in GQA's evaluation. Questions not marked `isBalanced` are left out, as there. A question is open
where its structural type is "query", else binary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.benchmarks.base import EVAL_ZIP, Benchmark, Conversion, References
from llava.eval.benchmarks.files import question_row
from llava.eval.benchmarks.prompts import SHORT, short_answer
from llava.eval.metrics.answer_files import field, read_json

QUESTIONS = "llava_gqa_testdev_balanced.jsonl"
IMAGES = "data/images"
REFERENCES = "data/testdev_balanced_questions.json"
_SITE = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
_HUB = "or the hub's lmms-lab/GQA"


def read(questions: Path, references: Path) -> References:
    """The balanced questions of GQA's JSON: question id → {"answer", "types", …}; `types` may be absent."""
    data = read_json(references, "questions file")
    if not isinstance(data, dict):
        raise UserError(f"{references}: expected GQA's object of question id → question, found {type(data).__name__}")
    balanced = {}
    for question_id, question in data.items():
        where = f"{references}: question {question_id}"
        if not isinstance(question, dict):
            raise UserError(f"{where}: expected an object, found {type(question).__name__}")
        field(question, "answer", where)
        if question.get("types") is not None:
            field(question, "types", where, dict)
        if question.get("isBalanced", True):
            balanced[question_id] = question
    return References(balanced)


def normalize(text: str) -> str:
    """The answer as it is compared: "Yes." → "yes". Spaces are not touched."""
    return text.rstrip(".").lower()


def judge(text: str, reference: dict[str, Any]) -> float:
    """1 where the answer is GQA's, else 0."""
    return float(normalize(text) == reference["answer"])


def groups(reference: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The question's shape (open, binary) and its structural, semantic and detailed type."""
    types = reference.get("types") or {}
    if types.get("structural") is not None:
        yield "shape", "open" if types["structural"] == "query" else "binary"
    for kind in ("structural", "semantic", "detailed"):
        if types.get(kind) is not None:
            yield kind, str(types[kind])


def _write_questions(rows, layout):
    """lmms-lab/GQA, testdev_balanced_instructions."""
    kept = ("imageId", "question", "answer", "fullAnswer", "isBalanced", "types")
    references = {}
    with layout.lines(QUESTIONS) as write:
        for row in rows:
            write(question_row(str(row["id"]), f"{row['imageId']}.jpg", short_answer(row["question"])))
            references[str(row["id"])] = {key: row[key] for key in kept if row.get(key) is not None}
    layout.json(REFERENCES, references)


def _write_images(rows, layout):
    """lmms-lab/GQA, testdev_balanced_images."""
    for row in rows:
        layout.image(f"{IMAGES}/{row['id']}.jpg", row["image"])


GQA = Benchmark(
    name="gqa",
    title="GQA",
    folder="gqa",
    questions=QUESTIONS,
    images=IMAGES,
    suffix=f"\n{SHORT}",
    questions_from=f"{EVAL_ZIP}, {_HUB}",
    images_from=f"images.zip of {_SITE}, {_HUB}",
    references_from=f"questions1.2.zip of {_SITE}, {_HUB}",
    counts=(12578,),
    references=REFERENCES,
    read=read,
    judge=judge,
    groups=groups,
    conversions=(
        Conversion(
            "testdev_balanced_instructions/*.parquet *instructions*.parquet",
            "id imageId question answer",
            _write_questions,
            optional="fullAnswer isBalanced types",
        ),
        Conversion("testdev_balanced_images/*.parquet *images*.parquet", "id image", _write_images),
    ),
)
