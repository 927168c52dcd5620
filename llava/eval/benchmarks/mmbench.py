"""MMBench (dev, English): option letters, each question also with its options rotated.

The table repeats every question with its options rotated (index + 1,000,000 and so on). "accuracy" is over the
questions as they stand (single pass). "circular" counts a question only if all its rotations are correct; papers quote
it (64.3 for LLaVA-1.5-7B). Where MMBench's evaluation would ask a language model to parse an answer, the answer is
wrong here and counted as "unreadable".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.benchmarks.base import Benchmark, Conversion, Figures, Judged, References
from llava.eval.benchmarks.files import matched, question_row
from llava.eval.benchmarks.prompts import LETTER, with_options
from llava.eval.metrics.scores import Groups, accuracy_of
from llava.eval.metrics.tables import choices_of, is_empty, read_table
from llava.files import replacing

SPLIT = "mmbench_dev_20230712"
QUESTIONS = f"{SPLIT}.jsonl"
TABLE = f"{SPLIT}.tsv"
IMAGES = f"images/{SPLIT}"
ROTATION = 1_000_000
"""A rotated copy's index is its question's plus a multiple of this."""
_GROUPS = ("l2-category", "category")
_KEPT = ("index", "question", "hint", *"ABCD", "answer", "category", "source", "l2-category", "comment", "split")
_NOT_SUBMITTED = frozenset({"hint", "category", "source", "image", "comment", "l2-category"})
_PREDICTION_COLUMN = 6
_SITE = f"https://download.openmmlab.com/mmclassification/datasets/mmbench/{TABLE}"
_FROM = f"{_SITE}, or the hub's lmms-lab/MMBench_EN (llava.eval.prepare writes it)"
_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_LAST_WORDS = 5

Row = dict[str, str]


def infer_option(answer: str, choices: Mapping[str, str]) -> str | None:
    """The option that MMBench's evaluation (VLMEvalKit, without its language model) finds in an answer, or None.

    In this order: the only option letter that stands as a word of its own, where it is among the last five words
    (punctuation is no word); the letter of "answer is X"; the only option whose text the answer contains, unless the
    answer is more than twice as long as all options together. "Z" and no letter is how a model declines.

    Args:
        answer: the model's answer.
        choices: letter → text of the options that the question has.

    """
    words = answer.translate(_MARKS).split()
    letters = [letter for letter in choices if letter in words]
    if len(letters) == 1 and words.index(letters[0]) > len(words) - _LAST_WORDS:
        return letters[0]
    if not letters and "Z" in words:
        return None
    sentence = _ANSWER_IS.search(answer)
    if sentence is not None and sentence.group(1).upper() in choices:
        return sentence.group(1).upper()
    if len(answer) > 2 * sum(len(choice) for choice in choices.values()):
        return None
    named = [letter for letter, choice in choices.items() if choice.lower() in answer.lower()]
    return named[0] if len(named) == 1 else None


def judge(text: str, reference: Row) -> float:
    """1 where the option read in the answer is the row's, else 0."""
    return float(infer_option(text, choices_of(reference)) == reference["answer"])


def read(questions: Path, references: Path) -> References:
    """The table's rows by index, without their images; column names in lower case but for the options.

    Raises `UserError`: as in `read_table`; an index that is no number or occurs twice, an answer that is no option.
    """
    rows: dict[str, Row] = {}
    for where, row in read_table(references, ("index", "question", "A", "B", "answer")):
        kept = {key: cell for key, cell in _lower(row).items() if key != "image"}
        if not kept["index"].isdigit() or kept["index"] in rows:
            raise UserError(f"{where}: index {kept['index']!r} is no number, or occurs twice")
        if kept["answer"] not in choices_of(kept):
            raise UserError(f"{where}: answer {kept['answer']!r} is none of the options {', '.join(choices_of(kept))}")
        rows[kept["index"]] = kept
    return References(rows)


def _lower(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key if key in "ABCD" else key.lower(): cell for key, cell in row.items()}


def aggregate(judged: Sequence[Judged], references: References) -> Figures:
    """The single pass "accuracy", "circular" (None where the table has no rotations), "unreadable" answers of all rows.

    The groups "l2-category" and "category" have "accuracy", "circular" and the "count" of questions.
    """
    rows, values = references.of, {one.key: one.value for one in judged}
    passes: dict[str, list[str]] = defaultdict(list)
    for index in rows:
        passes[str(int(index) % ROTATION)].append(index)
    single = {base: values[base] for base in passes if base in values}
    if not single:
        raise UserError("no answer to a question as it stands, only to rotated ones; there is no single pass to score")
    circular = {}
    if len(passes) < len(rows):
        whole = {base: indices for base, indices in passes.items() if all(index in values for index in indices)}
        circular = {base: float(all(values[index] for index in indices)) for base, indices in whole.items()}
    unreadable = sum(infer_option(one.text, choices_of(one.reference)) is None for one in judged)
    figures = {key: value for key, value in _figures(single, circular).items() if key != "count"}
    groups: Groups = {}
    for kind in _GROUPS:
        for name in sorted({rows[index][kind] for index in single if rows[index].get(kind)}):
            members = {index for index in single if rows[index].get(kind) == name}
            of_members = ({i: v for i, v in some.items() if i in members} for some in (single, circular))
            groups.setdefault(kind, {})[name] = _figures(*of_members)
    figure = "accuracy" if figures["circular"] is None else "circular"
    return figure, figures | {"unreadable": unreadable}, groups


def _figures(single: Mapping[str, float], circular: Mapping[str, float]) -> dict[str, Any]:
    circle = accuracy_of(list(circular.values()))["accuracy"] if circular else None
    return accuracy_of(list(single.values())) | {"circular": circle}


def submission(table: Path, answers: Path, upload: Path) -> dict[str, Any]:
    """Write the Excel file that MMBench's server takes: every row in its order, with a column "prediction".

    Args:
        table: MMBench's TSV (a test split may lack the answers).
        answers: JSONL with "question_id" (the row's index) and "text".
        upload: the .xlsx to write; it appears complete or not at all.

    Raises:
        UserError: openpyxl is not installed; unreadable or malformed input; answers that do not cover the rows.

    """
    try:
        from openpyxl import Workbook
    except ImportError:
        raise UserError("MMBench's server takes an Excel file, which needs openpyxl: pip install openpyxl") from None
    table_rows = (row for _, row in read_table(table, ("index", "question")))
    rows = [{key: cell for key, cell in row.items() if key.lower() not in _NOT_SUBMITTED} for row in table_rows]
    texts, counts = matched([row["index"] for row in rows], answers)
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    for row in rows:
        cells = [(key, None if is_empty(cell) else cell) for key, cell in row.items()]
        cells = [(key, int(row["index"]) if key == "index" else cell) for key, cell in cells]
        cells.insert(_PREDICTION_COLUMN, ("prediction", texts[row["index"]]))
        if row is rows[0]:
            sheet.append([key for key, _ in cells])
        sheet.append([cell for _, cell in cells])
    try:
        with replacing(upload, "wb") as file:
            book.save(file)
    except OSError as error:
        raise UserError(f"{upload} cannot be written: {error}") from None
    return {"output": str(upload)} | counts


def prompt(question: str, choices: Mapping[str, str], hint: str | None) -> str:
    """The prompt: hint (if any), question, options, instruction."""
    return with_options(question if hint is None else f"{hint}\n{question}", choices)


def _write(rows, layout):
    """The questions, the table without its images, one image file for all rotations of a question."""
    kept, images, digests = [], {}, {}
    for row in map(_lower, rows):
        index = str(row["index"])
        if isinstance(row["image"], str):  # the index of the row that has the image
            images[index] = row["image"]
        else:
            base, digest = str(int(index) % ROTATION), sha256(layout.image_bytes(row["image"], f"row {index}")).digest()
            if digests.get(base) == digest:
                images[index] = images[base]
            else:
                images[index] = layout.image_name(index, row["image"])
                layout.image(f"{IMAGES}/{images[index]}", row["image"])
                digests |= {index: digest} if index == base else {}
        kept.append({key: "" if row[key] is None else str(row[key]) for key in _KEPT if key in row})
    with layout.lines(QUESTIONS) as write:
        for row in kept:
            image = images[row["index"]]
            if image.isdigit():
                if images.get(image, image).isdigit():
                    raise UserError(f"row {row['index']}: its image is that of row {image!r}, which has none")
                image = images[image]
            text = prompt(row["question"], choices_of(row), None if is_empty(row.get("hint")) else row["hint"])
            write(question_row(int(row["index"]), image, text, row.get("category", "")))
    layout.table(TABLE, kept)


MMBENCH = Benchmark(
    name="mmbench",
    title="MMBench dev",
    folder="mmbench",
    questions=QUESTIONS,
    images=IMAGES,
    suffix=f"\n{LETTER}",
    max_new_tokens=1024,
    questions_from=_FROM,
    images_from=_FROM,
    references_from=_FROM,
    counts=(4377, 4329),  # LLaVA's table of July 2023, and the later one
    references=TABLE,
    read=read,
    judge=judge,
    aggregate=aggregate,
    has_own_score=lambda row: int(row["index"]) < ROTATION,
    figure="circular",
    labels={"accuracy": "single pass", "unreadable": "answers without a readable option letter"},
    submit=lambda folder, answers, upload: submission(folder / TABLE, answers, upload),
    upload_suffix=".xlsx",
    conversions=(
        Conversion(
            "en/dev-*.parquet dev-*.parquet",
            "index question hint answer A B C D category image",
            _write,
            optional="source L2-category l2-category comment split",
        ),
        Conversion("mmbench_dev*.tsv", "index question A B answer image", _write),
    ),
)
