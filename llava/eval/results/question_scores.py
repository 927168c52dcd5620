"""The score of every answer by benchmark, under its name of before: see `Benchmark.question_scores`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llava.cli import UserError
from llava.eval.benchmarks import BENCHMARKS, Benchmark, benchmark_of
from llava.eval.metrics.answer_files import Answer

QuestionScores = dict[tuple[str, str], float]


class QuestionScorer:
    """How one benchmark's answers are judged."""

    def __init__(self, benchmark: Benchmark):
        self.benchmark = benchmark

    def scores(self, question_file: Path, annotations: Path, answers: Iterable[Answer]) -> QuestionScores:
        """{(question id, prompt): score in [0, 1]}."""
        return self.benchmark.question_scores(answers, question_file, annotations)


SCORERS = {one.kind: QuestionScorer(one) for one in BENCHMARKS.values() if one.judge is not None}


def find_annotations(
    question_file: Path, kind: str | None = None, annotations: str | Path | None = None
) -> tuple[str, Path]:
    """The benchmark that a question file belongs to, and its references; `UserError` if there are none."""
    if kind is not None and kind not in SCORERS:
        raise UserError(f"benchmark {kind!r} is not known; known: {', '.join(SCORERS)}")
    found = benchmark_of(question_file, kind)
    path = Path(annotations or Path(found.folder) / found.references)
    if not path.exists():
        raise UserError(f"annotations of {found.kind} not found: {path}; name them with --annotations")
    return found.kind, path
