"""VizWiz: short answers to blind people's questions; test is scored by the evaluation server, val here.

Soft accuracy against ten annotators, as TextVQA's; answers and references are normalised as EvalAI does. The question
file names each question's image, by which the annotations are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.benchmarks.base import EVAL_ZIP, Benchmark, Conversion, References
from llava.eval.benchmarks.files import matched, question_row, read_entries, read_question_ids, write_upload
from llava.eval.benchmarks.prompts import SHORT, short_answer
from llava.eval.metrics.answer_files import field
from llava.eval.metrics.judges import vqa
from llava.eval.metrics.text_normalize import normalize_answer

TEST = "llava_test.jsonl"
VAL = "llava_val.jsonl"
VAL_REFERENCES = "val.json"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
_SITE = "https://vizwiz.cs.colorado.edu/VizWiz_final"
_HUB = "or the hub's lmms-lab/VizWiz-VQA"


def judge(text: str, reference: dict[str, Any]) -> float:
    """VizWiz's soft accuracy of an answer, in [0, 1]."""
    return vqa(text, reference["answers"])


def read(questions: Path, references: Path) -> References:
    """Question id → {"answers", "type"}, from val.json: [{"image", "answers": [{"answer"}], "answer_type"}].

    Raises `UserError`: a file is missing or malformed, an image has no answers (those of the test split have none), or
    a question's image has no annotation.
    """
    images, annotations = read_question_ids(questions, "image"), {}
    for where, entry in read_entries(references):
        if "answers" not in entry:
            raise UserError(f'{where}: expected an object with "answers" (the test split has none to score with)')
        answers = [field(answer, "answer", where) for answer in field(entry, "answers", where, list)]
        if not answers:
            raise UserError(f'{where}: "answers" is empty')
        annotations[field(entry, "image", where)] = {"answers": answers, "type": entry.get("answer_type")}
    unknown = next((image for image in images.values() if image not in annotations), None)
    if unknown is not None:
        raise UserError(f"{references} has no annotation of {unknown}, which {questions} asks about")
    return References({question_id: annotations[image] for question_id, image in images.items()})


def groups(reference: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The annotated type of the answer."""
    if isinstance(reference["type"], str):
        yield "answer type", reference["type"]


def submission(questions: Path, answers: Path, upload: Path) -> dict[str, Any]:
    """Write the server's file: [{"image", "answer"}] in the order of the question file, answers normalised.

    Raises `UserError`: unreadable or malformed input; answers that do not cover the questions.
    """
    images = read_question_ids(questions, "image")
    texts, counts = matched(images, answers)
    rows = [{"image": image, "answer": normalize_answer(texts[key])} for key, image in images.items()]
    return write_upload(upload, rows, counts)


def prompt(question: str) -> str:
    """The prompt: only the first letter is upper case; it says how to decline."""
    return short_answer(f"{question.capitalize()}\n{UNANSWERABLE}")


def _write(rows, layout, questions, images, references=None):
    """lmms-lab/VizWiz-VQA, one split; `references`: the file for its annotations."""
    array = layout.array(references) if references else nullcontext()
    with layout.lines(questions) as write, array as write_reference:
        for number, row in enumerate(rows):
            image = f"{row['question_id'].removesuffix('.jpg')}.jpg"
            layout.image(f"{images}/{image}", row["image"])
            write(question_row(number, image, prompt(row["question"])))
            if references:
                entry = {"image": image, "question": row["question"], "answer_type": row["category"]}
                write_reference(entry | {"answers": [{"answer": answer} for answer in row["answers"]]})


def _derive(layout):
    """The question file of val from the annotations."""
    with layout.lines(VAL) as write:
        for number, item in enumerate(layout.read_json(VAL_REFERENCES)):
            write(question_row(number, item["image"], prompt(item["question"])))


_COLUMNS = "question_id question image"
VIZWIZ = Benchmark(
    name="vizwiz",
    title="VizWiz test",
    folder="vizwiz",
    questions=TEST,
    images="test",
    suffix=f"\n{UNANSWERABLE}\n{SHORT}",
    questions_from=f"{EVAL_ZIP}, {_HUB} (test)",
    images_from=f"{_SITE}/images/test.zip, {_HUB}",
    counts=(8000,),
    figure=None,
    submit=lambda folder, answers, upload: submission(folder / TEST, answers, upload),
    conversions=(Conversion("test-*.parquet", _COLUMNS, partial(_write, questions=TEST, images="test")),),
)
VIZWIZ_VAL = replace(
    VIZWIZ,
    name="vizwiz_val",
    spec="vizwiz_val",
    title="VizWiz val",
    questions=VAL,
    images="val",
    questions_from=f"{_SITE}/vqa_data/Annotations.zip, {_HUB} (val)",
    images_from=f"{_SITE}/images/val.zip, {_HUB}",
    references_from=f"{_SITE}/vqa_data/Annotations.zip, {_HUB} (val)",
    counts=(4319,),
    references=VAL_REFERENCES,
    read=read,
    judge=judge,
    groups=groups,
    figure="accuracy",
    submit=None,
    conversions=(
        Conversion(
            "val-*.parquet",
            f"{_COLUMNS} answers category",
            partial(_write, questions=VAL, images="val", references=VAL_REFERENCES),
        ),
    ),
    derived=(VAL_REFERENCES, _derive),
)
