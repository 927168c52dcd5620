"""The multiple-choice data sets (ScienceQA, MMBench, MMStar), as question, reference and image files.

Rows come from the hub's parquet files or from the published TSV tables; every function fills a benchmark's folder.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from llava.eval.benchmarks import mmbench as mmbench_files
from llava.eval.benchmarks import mmstar as mmstar_files
from llava.eval.benchmarks import scienceqa as scienceqa_files
from llava.eval.eval_mmbench import ROTATION
from llava.eval.metrics.option_tables import choices_of, is_nothing, read_table
from llava.eval.prepare.layout import Layout, PrepareError
from llava.eval.prepare.pictures import decode_base64, image_bytes, suffix_of
from llava.eval.runner import prompts

Row = Mapping[str, Any]
_MMBENCH_COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "source")
_MMBENCH_MORE = ("l2-category", "comment", "split")
_MMSTAR_COLUMNS = ("index", "question", "answer", "category", "l2_category")
_LONGEST_REFERENCE = 64
"""A shorter image cell is no image but the index of the row that has it."""


def scienceqa(rows: Iterable[Row], layout: Layout) -> None:
    """lmms-lab/ScienceQA, ScienceQA-IMG, test: rows have no ids there, so they are numbered."""
    about = ("question", "choices", "answer", "hint", "task", "grade", "subject", "topic", "category", "skill")
    ids = []
    with (
        layout.lines(scienceqa_files.QUESTIONS) as write,
        layout.mapping(scienceqa_files.PROBLEMS[0]) as write_problem,
    ):
        for number, row in enumerate(rows):
            question_id = str(number)
            image = f"{question_id}/image.png"
            layout.image(f"{scienceqa_files.IMAGES}/{image}", image_bytes(row["image"], f"row {number}"))
            text = prompts.science_qa(row["question"], row["choices"], row.get("hint") or "")
            write({"question_id": question_id, "image": image, "text": text, "category": row.get("subject", "")})
            problem = {key: row[key] for key in about if row.get(key) is not None}
            write_problem((question_id, problem | {"image": "image.png", "split": "test"}))
            ids.append(question_id)
    with layout.mapping(scienceqa_files.PROBLEMS[1]) as write_split:
        write_split(("test", ids))


def scienceqa_questions(layout: Layout) -> None:
    """The loader's question file from LLaVA's own (conversations), for the questions with an image."""
    with layout.lines(scienceqa_files.QUESTIONS) as write:
        for item in layout.json(scienceqa_files.LLAVA_QUESTIONS):
            if "image" in item:
                asked = item["conversations"][0]["value"].replace("<image>", "").strip()
                text = f"{asked}\n{prompts.LETTER}"
                write({"question_id": item["id"], "image": item["image"], "text": text, "category": "default"})


def table_rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows of a published TSV table, images decoded; an image that is another row's index stays text."""
    for where, row in read_table(path, (*columns, "image")):
        cell = row["image"]
        yield row | {"image": cell if len(cell) <= _LONGEST_REFERENCE else decode_base64(cell, where)}


def mmbench_table(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of MMBench's TSV."""
    return table_rows(path, ("index", "question", "A", "B", "answer"))


def mmstar_table(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of MMStar's TSV."""
    return table_rows(path, _MMSTAR_COLUMNS)


def mmbench(rows: Iterable[Row], layout: Layout) -> None:
    """MMBench: questions, the table without its images, one image file for all rotations of a question."""
    kept: list[dict[str, str]] = []
    images: dict[str, str] = {}
    digests: dict[str, bytes] = {}
    borrowed: dict[str, str] = {}
    for row in rows:
        lower = {key if key in "ABCD" else key.lower(): value for key, value in row.items()}
        index = str(lower["index"])
        if isinstance(lower["image"], str):
            borrowed[index] = lower["image"]
        else:
            images[index] = _store(layout, index, image_bytes(lower["image"], f"row {index}"), images, digests)
        columns = (*_MMBENCH_COLUMNS, *_MMBENCH_MORE)
        kept.append({key: "" if lower[key] is None else str(lower[key]) for key in columns if key in lower})
    for index, other in borrowed.items():
        if other not in images:
            raise PrepareError(f"row {index}: its image is that of row {other!r}, which has none")
        images[index] = images[other]
    with layout.lines(mmbench_files.QUESTIONS) as write:
        for row in kept:
            hint = None if is_nothing(row.get("hint")) else row["hint"]
            text = prompts.mmbench(row["question"], choices_of(row), hint)
            category = row.get("category", "")
            image = images[row["index"]]
            write({"question_id": int(row["index"]), "image": image, "text": text, "category": category})
    _write_table(layout, mmbench_files.TABLE, kept)


def _store(layout: Layout, index: str, data: bytes, images: dict[str, str], digests: dict[str, bytes]) -> str:
    """Write an image unless the unrotated question has the very same; returns its file name."""
    base = str(int(index) % ROTATION)
    digest = sha256(data).digest()
    if digests.get(base) == digest:
        return images[base]
    name = index + suffix_of(data, f"row {index}")
    layout.image(f"{mmbench_files.IMAGES}/{name}", data)
    if index == base:
        digests[base] = digest
    return name


def mmstar(rows: Iterable[Row], layout: Layout) -> None:
    """MMStar: questions (their options are in the question), the table without its images, images."""
    kept = []
    with layout.lines(mmstar_files.QUESTIONS) as write:
        for row in rows:
            index = str(row["index"])
            data = image_bytes(row["image"], f"row {index}")
            image = index + suffix_of(data, f"row {index}")
            layout.image(f"{mmstar_files.IMAGES}/{image}", data)
            text = prompts.mmstar(row["question"])
            write({"question_id": index, "image": image, "text": text, "category": row["category"]})
            kept.append({key: str(row[key]) for key in _MMSTAR_COLUMNS})
    _write_table(layout, mmstar_files.TABLE, kept)


def _write_table(layout: Layout, relative: str, rows: list[dict[str, str]]) -> None:
    with layout.text(relative) as file:
        if file is not None and rows:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
