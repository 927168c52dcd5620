"""VQAv2: short answers; test-dev is scored by the evaluation server, val here, as VQA's official evaluation does.

An answer is first brought into the form in which it would be submitted (`normalize_answer`, as LLaVA does), and is
worth the mean, over the ten annotators left out in turn, of min(1, matches among the other nine / 3). Before the
comparison answer and references are normalised (`normalize_vqa`), unless all annotators gave the same answer.
"""

from __future__ import annotations

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
from llava.eval.metrics.judges import soft_accuracy
from llava.eval.metrics.text_normalize import normalize_answer, normalize_vqa

TEST_DEV = "llava_vqav2_mscoco_test-dev2015.jsonl"
TEST = "llava_vqav2_mscoco_test2015.jsonl"
VAL = "llava_vqav2_mscoco_val2014.jsonl"
VAL_REFERENCES = "v2_mscoco_val2014_annotations.json"
PUBLISHED_VAL = "v2_OpenEnded_mscoco_val2014_questions.json"
_COCO = "http://images.cocodataset.org/zips"
_HUB = "or the hub's lmms-lab/VQAv2"

Reference = tuple[list[str], list[tuple[str, str]]]
"""(the annotators' answers, (kind, name) of the question's official types)."""


def judge(text: str, reference: Reference) -> float:
    """VQA's accuracy of an answer, in [0, 1]."""
    return vqa_accuracy(normalize_answer(text), reference[0])


def vqa_accuracy(submitted: str, answers: list[str]) -> float:
    """VQA's accuracy of a submitted answer against the annotators' answers as they stand in the file."""
    predicted, *wanted = (text.replace("\n", " ").replace("\t", " ").strip() for text in (submitted, *answers))
    if len(set(wanted)) > 1:
        predicted, *wanted = map(normalize_vqa, (predicted, *wanted))
    return soft_accuracy([one == predicted for one in wanted])


def read(questions: Path, references: Path) -> References:
    """The annotations by question id, from VQA's JSON {"annotations": [{"question_id", "answers", …}]}.

    Raises `UserError`: the file is missing or malformed, a question has no answers or occurs twice.
    """
    annotations: dict[str, Reference] = {}
    for where, entry in read_entries(references, "annotations"):
        question_id = str(field(entry, "question_id", where, (int, str)))
        answers = [field(answer, "answer", where) for answer in field(entry, "answers", where, list)]
        if not answers or question_id in annotations:
            raise UserError(f"{where}: question {question_id} occurs twice, or has no answers")
        kinds = (("answer type", "answer_type"), ("question type", "question_type"))
        groups = [(kind, entry[key]) for kind, key in kinds if isinstance(entry.get(key), str)]
        annotations[question_id] = answers, groups
    return References(annotations)


def submission(questions: Path, all_questions: Path, answers: Path, upload: Path) -> dict[str, Any]:
    """Write the server's file: [{"question_id", "answer"}] in the order of `all_questions`, answers normalised.

    The server wants every question of test2015; those outside the split that was asked (test-dev2015) get an empty
    answer, as LLaVA does, and "filled" counts them.

    Raises `UserError`: unreadable or malformed input; a question of the split that is not among all; answers that do
    not cover the split.
    """
    split, everything = read_question_ids(questions), read_question_ids(all_questions)
    stray = next((question_id for question_id in split if question_id not in everything), None)
    if stray is not None:
        raise UserError(f"question {stray} of {questions} is not in {all_questions}")
    texts, counts = matched(split, answers)
    rows = [
        {"question_id": original, "answer": normalize_answer(texts[key]) if key in texts else ""}
        for key, original in everything.items()
    ]
    return write_upload(upload, rows, counts | {"filled": len(everything) - len(split)})


def _write(rows, layout, questions, coco, references=None):
    """lmms-lab/VQAv2, one split; `references`: the file for its annotations."""
    kept = ("question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers")
    array = layout.array(references, key="annotations") if references else nullcontext()
    with layout.lines(questions) as write, array as write_reference:
        for row in rows:
            image = f"COCO_{coco}_{row['image_id']:012d}.jpg"
            layout.image(f"{coco}/{image}", row["image"])
            write(question_row(row["question_id"], image, short_answer(row["question"])))
            if references:
                write_reference({key: row[key] for key in kept})


def _derive(layout):
    """The question file of val from VQA's own."""
    with layout.lines(VAL) as write:
        for item in layout.read_json(PUBLISHED_VAL)["questions"]:
            image = f"COCO_val2014_{item['image_id']:012d}.jpg"
            write(question_row(item["question_id"], image, short_answer(item["question"])))


_COLUMNS = "question_id image_id question image"
_VAL_COLUMNS = f"{_COLUMNS} question_type answer_type multiple_choice_answer answers"
VQAV2 = Benchmark(
    name="vqav2",
    title="VQAv2 test-dev",
    folder="vqav2",
    questions=TEST_DEV,
    images="test2015",
    suffix=f"\n{SHORT}",
    questions_from=f"{EVAL_ZIP}, {_HUB} (testdev)",
    images_from=f"{_COCO}/test2015.zip, {_HUB}",
    references_from=f"{EVAL_ZIP}, {_HUB} (test)",
    reference_files=(TEST,),
    counts=(107394,),
    figure=None,
    submit=lambda folder, answers, upload: submission(folder / TEST_DEV, folder / TEST, answers, upload),
    conversions=(
        Conversion("testdev-*.parquet", _COLUMNS, partial(_write, questions=TEST_DEV, coco="test2015")),
        Conversion("test-*.parquet", _COLUMNS, partial(_write, questions=TEST, coco="test2015")),
    ),
)
VQAV2_VAL = replace(
    VQAV2,
    name="vqav2_val",
    spec="vqav2_val",
    title="VQAv2 val",
    questions=VAL,
    images="val2014",
    questions_from="the hub's lmms-lab/VQAv2 (validation)",
    images_from=f"{_COCO}/val2014.zip, {_HUB}",
    references_from=f"https://visualqa.org/download.html, {_HUB} (validation)",
    reference_files=None,
    counts=(214354,),
    references=VAL_REFERENCES,
    read=read,
    judge=judge,
    groups=lambda reference: reference[1],
    figure="accuracy",
    submit=None,
    conversions=(
        Conversion(
            "validation-*.parquet",
            _VAL_COLUMNS,
            partial(_write, questions=VAL, coco="val2014", references=VAL_REFERENCES),
        ),
    ),
    derived=(PUBLISHED_VAL, _derive),
)
