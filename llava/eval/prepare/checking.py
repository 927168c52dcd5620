"""Check a benchmark's folder: number of questions, images, reference files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.benchmarks import Benchmark
from llava.eval.benchmarks.base import Needed
from llava.eval.prepare.layout import Layout

_NAMED = 3


@dataclass(frozen=True)
class State:
    """What was found in a benchmark's folder.

    `problems`: sentences that name missing files and their sources, empty if complete; `misfit`: why questions and
    references do not match.
    """

    benchmark: Benchmark
    folder: Path
    questions: int
    images: int
    images_missing: list[str]
    files_missing: list[Needed]
    misfit: str | None
    problems: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The state for programs."""
        return {
            "benchmark": self.benchmark.name,
            "folder": str(self.folder),
            "questions": self.questions,
            "expected": list(self.benchmark.counts),
            "images": self.images,
            "images_missing": len(self.images_missing),
            "ready": not self.problems,
            "problems": self.problems,
        }


def check(benchmark: Benchmark, data_dir: Path) -> State:
    """Look at a benchmark's folder below `data_dir`.

    The images are looked for, not opened; where every file is there, the scoring is rehearsed.

    Raises `UserError`: the question file is malformed, or names an image outside the image folder.
    """
    layout = Layout(benchmark.at(data_dir))
    rows = list(layout.rows(benchmark.questions))
    images = dict.fromkeys(row["image"] for row in rows if row.get("image"))
    missing = [name for name in images if not layout.path(f"{benchmark.images}/{name}").is_file()]
    lacking, by_source, misfit = benchmark.missing(layout.folder), {}, None
    for need in lacking:
        by_source.setdefault(need.where, []).append(str(layout.folder / need.path))
    problems = [f"missing {', '.join(paths)}: from {where}" for where, paths in by_source.items()]
    if rows and not lacking:
        try:
            benchmark.rehearse(layout.folder)
        except UserError as error:
            misfit = str(error)
            problems.append(misfit)
    paths = [need.path for need in lacking]
    if benchmark.questions not in paths and len(rows) not in (benchmark.counts or (len(rows),)):
        expected = " or ".join(f"{count:,}" for count in benchmark.counts)
        problems.append(f"{benchmark.questions} has {len(rows):,} questions, expected {expected}")
    if missing and benchmark.images not in paths:
        names = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
        found = f"{len(missing):,} of {len(images):,} images are missing"
        problems.append(f"{found} ({names}): from {benchmark.images_from}")
    return State(benchmark, layout.folder, len(rows), len(images), missing, lacking, misfit, problems)
