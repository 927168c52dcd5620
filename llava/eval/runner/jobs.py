"""Old names, until every caller uses `llava.eval.runner.evaluator`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llava.eval.benchmarks import Benchmark
from llava.eval.metrics.scores import Scores
from llava.eval.runner.evaluator import Evaluator, config_of, upload_file_of
from llava.eval.runner.plan import Plan
from llava.eval.runner.ranks import Ranks
from llava.eval.runner.running import Loader

__all__ = ["Job", "Result", "check_files", "do", "make_job"]


@dataclass(frozen=True)
class Job:
    benchmark: Benchmark
    folder: Path
    args: SimpleNamespace
    plan: Plan


@dataclass(frozen=True)
class Result:
    job: Job
    record: dict[str, Any]
    partial: bool
    scores: Scores | None
    upload: Path | None


def check_files(benchmark: Benchmark, folder: Path) -> None:
    benchmark.require(folder)


class _Lent(Evaluator):
    loader: Loader

    @property
    def loaded(self):
        return self.loader(self.model_options)


def make_job(benchmark: Benchmark, data_dir: str | Path, out: str | Path, name: str, settings: dict[str, Any]) -> Job:
    args = SimpleNamespace(**{key: value for key, value in settings.items() if value is not None})
    folder, answers_file = benchmark.at(data_dir), Path(out).expanduser() / benchmark.name / f"{name}.jsonl"
    plan = Evaluator(args).plan(benchmark, folder, answers_file, config_of(settings.get("pruning_config")))
    args.question_file, args.image_folder = str(plan.question_file), str(plan.images)
    vars(args).update(vars(plan.options))
    return Job(benchmark, folder, args, plan)


def do(job: Job, command: str, loader: Loader, ranks: Ranks) -> Result | None:
    evaluator = _Lent(job.args, command, ranks)
    evaluator.loader = loader
    run = evaluator.run(job.plan)
    if run is None:
        return None
    upload = upload_file_of(job.plan)
    scores = None if run.scores is None else Scores(run.scores)
    partial = len(run.answers) < len(job.plan.known)
    return Result(job, run.record, partial, scores, upload if upload.is_file() else None)
