"""What a benchmark's folder lacks: number of questions, images, reference files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.benchmarks import Benchmark
from llava.eval.benchmarks.base import Needed
from llava.eval.prepare.layout import Layout

_NAMED = 3


@dataclass(frozen=True)
class State:
    """What was found in a benchmark's folder; `problems` are whole sentences, empty when all is there."""

    benchmark: Benchmark
    folder: Path
    questions: int
    images: int
    images_missing: list[str] = field(default_factory=list)
    files_missing: list[Needed] = field(default_factory=list)
    misfit: str | None = None
    """Why questions and references do not go together."""

    @property
    def problems(self) -> list[str]:
        """What is missing, and where it is to be had."""
        by_source: dict[str, list[str]] = {}
        for need in self.files_missing:
            by_source.setdefault(need.where, []).append(str(self.folder / need.path))
        found = [f"missing {', '.join(paths)}: from {where}" for where, paths in by_source.items()]
        found += [self.misfit] if self.misfit else []
        counts = self.benchmark.counts
        is_there = self.benchmark.questions not in (need.path for need in self.files_missing)
        if is_there and self.questions not in (counts or (self.questions,)):
            expected = " or ".join(f"{count:,}" for count in counts)
            found.append(f"{self.benchmark.questions} has {self.questions:,} questions, expected {expected}")
        needs_images = self.benchmark.images in (need.path for need in self.files_missing)
        if self.images_missing and not needs_images:
            names = ", ".join(self.images_missing[:_NAMED]) + (", …" if len(self.images_missing) > _NAMED else "")
            where = next(need.where for need in self.benchmark.needs if need.path == self.benchmark.images)
            number = len(self.images_missing)
            found.append(f"{number:,} of {self.images:,} images are missing ({names}): from {where}")
        return found

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

    Raises:
        UserError: the question file is malformed, or names an image outside the image folder.

    """
    layout = Layout(benchmark.at(data_dir))
    questions, images = 0, {}
    for row in layout.rows(benchmark.questions):
        questions += 1
        if row.get("image"):
            images[row["image"]] = layout.path(f"{benchmark.images}/{row['image']}")
    missing = [name for name, path in images.items() if not path.is_file()]
    lacking = benchmark.missing(layout.folder)
    misfit = None
    if questions and not lacking:
        try:
            benchmark.rehearse(layout.folder)
        except UserError as error:
            misfit = str(error)
    return State(benchmark, layout.folder, questions, len(images), missing, lacking, misfit)
