"""Find the judge of a run's answers: its benchmark, question file and references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llava.cli import UserError
from llava.eval.benchmarks import Benchmark, benchmark_of, question_set
from llava.eval.metrics.answer_files import Key
from llava.eval.runner.run import Run


@dataclass(frozen=True)
class Judge:
    """A benchmark with the question file and the references that a run's answers are judged by."""

    benchmark: Benchmark
    questions: Path
    references: Path

    def scores(self, run: Run) -> dict[Key, float]:
        """The score of each answer in [0, 1], without answers that have no reference or do not count.

        Raises:
            UserError: unreadable references, or none of the run's questions in them.

        """
        scores = self.benchmark.question_scores(run.answers.values(), self.questions, self.references)
        if run.answers and not scores:
            raise UserError(f"{self.references} has none of the {len(run.answers)} questions of {run.answers_file}")
        return scores


def judge_of(
    run: Run,
    benchmark: Benchmark | str | None = None,
    references: str | Path | None = None,
    judge: str | None = None,
    data_dir: str | Path | None = None,
) -> Judge:
    """Find how a run's answers are judged.

    Args:
        run: the run. A question set is judged as its run file says, other questions by their file's folder, whose name
            begins with the benchmark's (`gqa`, `gqa_mini`, `MME`).
        benchmark: the benchmark, its name, or `path/to/file.py:MY_BENCHMARK`, in place of that.
        references: the file or folder of references; default: in LLaVA's layout beside the question file.
        judge: how answers compare with `references` in a format of one's own, e.g. `exact` (docs/your-own-data.md).
        data_dir: folder of the benchmarks, where references are looked for in place of the question file's folder.

    Raises:
        UserError: an unknown benchmark, or no references there.

    """
    questions, given = run.question_file, run.record.get("benchmark")
    if data_dir is not None:
        questions = Path(data_dir).expanduser() / questions.resolve().parent.name / questions.name
    if judge is not None:
        found = question_set(questions, references=references, judge=judge)
    elif isinstance(benchmark, Benchmark):
        found = benchmark
    elif benchmark is None and isinstance(given, Mapping):
        found = question_set(**given)
    else:
        own = given if isinstance(given, str) and ":" in given else None  # path/to/file.py:MY_BENCHMARK
        found = benchmark_of(questions, benchmark or own)
    path = found.references_at(questions.parent) if references is None else Path(references).expanduser()
    if not path.exists():
        raise UserError(f"references of {found.name} not found: {path}")
    return Judge(found, questions, path)
