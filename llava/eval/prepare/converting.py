"""Which files of a hub snapshot (or published table) hold a benchmark, and which function converts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from llava.eval.benchmarks import Benchmark
from llava.eval.prepare import answers_letter, answers_short
from llava.eval.prepare.layout import Layout, PrepareError
from llava.eval.prepare.parquet import choose, rows
from llava.eval.prepare.sources import Source


@dataclass(frozen=True)
class Conversion:
    """One data set's parquet files: name patterns (the first that matches any file), columns, converter."""

    patterns: tuple[str, ...]
    columns: tuple[str, ...]
    convert: Callable[[Iterable[dict[str, Any]], Layout], None]
    optional: tuple[str, ...] = ()


_VQAV2 = ("question_id", "image_id", "question", "image")
_VQAV2_MORE = ("question_type", "answer_type", "multiple_choice_answer", "answers")
_VIZWIZ = ("question_id", "question", "image")
_VIZWIZ_MORE = ("answers", "category")

CONVERSIONS: dict[str, tuple[Conversion, ...]] = {
    "gqa": (
        Conversion(
            ("testdev_balanced_instructions/*.parquet", "*instructions*.parquet"),
            ("id", "imageId", "question", "answer"),
            answers_short.gqa_questions,
            ("fullAnswer", "isBalanced", "types"),
        ),
        Conversion(
            ("testdev_balanced_images/*.parquet", "*images*.parquet"), ("id", "image"), answers_short.gqa_images
        ),
    ),
    "mme": (
        Conversion(
            ("data/test-*.parquet", "*.parquet"),
            ("question_id", "image", "question", "answer", "category"),
            answers_short.mme,
        ),
    ),
    "textvqa": (
        Conversion(
            ("validation-*.parquet",),
            ("image_id", "question_id", "question", "image", "answers", "ocr_tokens"),
            answers_short.textvqa,
        ),
    ),
    "pope": (
        Conversion(
            ("data/test-*.parquet", "Full/*.parquet", "*.parquet"),
            ("question", "answer", "image_source", "image", "category"),
            answers_short.pope,
        ),
    ),
    "scienceqa": (
        Conversion(
            ("ScienceQA-IMG/test-*.parquet", "test-*.parquet"),
            ("image", "question", "choices", "answer"),
            answers_letter.scienceqa,
            ("hint", "task", "grade", "subject", "topic", "category", "skill"),
        ),
    ),
    "mmbench": (
        Conversion(
            ("en/dev-*.parquet", "dev-*.parquet"),
            ("index", "question", "hint", "answer", "A", "B", "C", "D", "category", "image"),
            answers_letter.mmbench,
            ("source", "L2-category", "l2-category", "comment", "split"),
        ),
    ),
    "mmstar": (
        Conversion(
            ("mmstar.parquet", "*.parquet"),
            ("index", "question", "image", "answer", "category", "l2_category"),
            answers_letter.mmstar,
        ),
    ),
    "mmvet": (
        Conversion(("data/test-*.parquet", "*.parquet"), ("question_id", "image", "question"), answers_short.mmvet),
    ),
    "vqav2": (
        Conversion(("testdev-*.parquet",), _VQAV2, partial(answers_short.vqav2, split="testdev")),
        Conversion(("test-*.parquet",), _VQAV2, partial(answers_short.vqav2, split="test")),
    ),
    "vqav2_val": (
        Conversion(
            ("validation-*.parquet",), (*_VQAV2, *_VQAV2_MORE), partial(answers_short.vqav2, split="validation")
        ),
    ),
    "vizwiz": (Conversion(("test-*.parquet",), _VIZWIZ, partial(answers_short.vizwiz, split="test")),),
    "vizwiz_val": (
        Conversion(("val-*.parquet",), (*_VIZWIZ, *_VIZWIZ_MORE), partial(answers_short.vizwiz, split="val")),
    ),
}
# Published tables: name pattern, reader of the rows, converter.
TABLES = {
    "mmbench": ("mmbench_dev*.tsv", answers_letter.mmbench_table, answers_letter.mmbench),
    "mmstar": ("mmstar*.tsv", answers_letter.mmstar_table, answers_letter.mmstar),
}


def convert(benchmark: Benchmark, source: Source, layout: Layout) -> None:
    """Convert the data sets and tables of a benchmark that the source has into its folder.

    Raises:
        PrepareError: parquet files or tables inside an archive; files that cannot be read; rows that do not fit.

    """
    for conversion in CONVERSIONS.get(benchmark.name, ()):
        names = choose([name for name in source.names if name.endswith(".parquet")], *conversion.patterns)
        if names:
            paths = [_path(source, name) for name in names]
            conversion.convert(rows(paths, conversion.columns, conversion.optional), layout)
    if benchmark.name in TABLES:
        pattern, read, store = TABLES[benchmark.name]
        tables = [name for name in source.names if name.endswith(".tsv")]
        for name in choose([t.lower() for t in tables], pattern)[:1]:
            original = next(table for table in tables if table.lower() == name)
            path = _path(source, original)
            if layout.path(benchmark.questions).is_file() and _is_own_table(path, layout):
                continue  # written by an earlier call, without images
            store(read(path), layout)


def _is_own_table(path: Any, layout: Layout) -> bool:
    with open(path, encoding="utf-8") as file:
        header = file.readline()
    return path.resolve().is_relative_to(layout.folder.resolve()) and "image" not in header.rstrip("\n").split("\t")


def _path(source: Source, name: str) -> Any:
    path = source.path(name)
    if path is None:
        raise PrepareError(f"{source.label} holds {name}: unpack the archive and give the folder")
    return path
