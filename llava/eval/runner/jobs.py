"""One benchmark under one pruning config, from its files to its score; by one process or many."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.benchmarks import Benchmark
from llava.eval.metrics.scores import Scores
from llava.eval.model_vqa_loader import build_parser
from llava.eval.runner import parts
from llava.eval.runner.answers import AnswersFile, make_folder, unanswered
from llava.eval.runner.plan import Plan, make_plan
from llava.eval.runner.questions import Skipped
from llava.eval.runner.ranks import Ranks
from llava.eval.runner.runfile import check_settings, read_run_file, run_file_of, write_run_file
from llava.eval.runner.running import Loader, Run


class JobError(ValueError):
    """A benchmark that cannot run; the message is one line that says what is missing and where it is to be had."""


@dataclass(frozen=True)
class Job:
    """A benchmark in `folder`, the loader's settings for it (`args`), and what they come to (`plan`)."""

    benchmark: Benchmark
    folder: Path
    args: argparse.Namespace
    plan: Plan


@dataclass(frozen=True)
class Result:
    """What came of a job: the run file's record, the scores (None where a server gives them), the file for it.

    `partial`: whether some of the file's questions were left out, by --limit or --skip-bad.
    """

    job: Job
    record: dict[str, Any]
    partial: bool
    scores: Scores | None
    upload: Path | None


def check_files(benchmark: Benchmark, folder: Path) -> None:
    """Raise `JobError` unless everything that asking and scoring need is in `folder`."""
    missing = benchmark.missing(folder)
    if missing:
        details = "; ".join(f"{folder / need.path} (from: {need.where})" for need in missing)
        raise JobError(f"{benchmark.title} cannot run; missing: {details}")


def make_job(benchmark: Benchmark, data_dir: str | Path, out: str | Path, name: str, settings: dict[str, Any]) -> Job:
    """Check a benchmark's files and the settings; nothing is loaded.

    `out`, `name`: the answers go to `out/benchmark/name.jsonl`; `settings`: the loader's, by attribute, defaults left
    out. Raises `JobError`, and what `make_plan` and `Benchmark.rehearse` raise.
    """
    folder = benchmark.at(data_dir)
    check_files(benchmark, folder)
    given = {
        "--model-path": settings["model_path"],
        "--question-file": folder / benchmark.questions,
        "--image-folder": folder / benchmark.images,
        "--answers-file": Path(out).expanduser() / benchmark.name / f"{name}.jsonl",
    }
    words = [str(word) for pair in given.items() for word in pair]
    defaults = {"max_new_tokens": benchmark.max_new_tokens} | {
        key: value for key, value in settings.items() if value is not None
    }
    args = build_parser().parse_args(words, argparse.Namespace(**defaults))
    return Job(benchmark, folder, args, make_plan(args))


def check_answers(job: Job) -> None:
    """Raise, before anything is asked, what `do` would raise for the answers that are there and for their folder."""
    plan = job.plan
    make_folder(plan.answers_file.parent)
    rows, _ = _found(plan, job.args.overwrite)
    unanswered(plan.answers_file, rows, plan.known, plan.selected)


def do(job: Job, command: str, loader: Loader, ranks: Ranks) -> Result | None:
    """Answer what is open, put the answers together and score them; the result is rank 0's, None elsewhere.

    Every process calls this with the same job. Raises what the loader and the scorers raise, and `RankError` when
    another process fails.
    """
    record = _answer(job, command, loader, ranks)
    if record is None:
        return None
    scores, upload, answers = None, None, job.plan.answers_file
    partial = record["totals"]["questions"] < len(job.plan.known)
    if job.benchmark.judge is not None and record["totals"]["questions"]:
        scores = job.benchmark.score(job.folder, answers, partial)
        record["scores"] = scores
        write_run_file(run_file_of(answers), record)
    if job.benchmark.submit is not None and not partial:
        upload = answers.with_name(answers.stem + ".upload" + job.benchmark.upload_suffix)
        job.benchmark.submit(job.folder, answers, upload)
    return Result(job, record, partial, scores, upload)


def _answer(job: Job, command: str, loader: Loader, ranks: Ranks) -> dict[str, Any] | None:
    args, plan = job.args, job.plan
    topic = str(plan.answers_file)
    rows: list[dict[str, Any]] = []
    earlier, open_places = None, None
    if ranks.index == 0:
        make_folder(plan.answers_file.parent)
        rows, earlier = _found(plan, args.overwrite)
        todo = unanswered(plan.answers_file, rows, plan.known, plan.selected)
        open_places = [question.index for question in todo]
    asked = set(ranks.broadcast(f"{topic} todo", open_places))
    todo = [question for question in plan.selected if question.index in asked]
    run = Run(args, command, plan, rows, earlier, ranks)
    if todo:
        loaded = loader(args, plan)
        if ranks.index == 0:
            if args.overwrite:
                parts.clear(plan.answers_file)
            run.write("running")  # before anybody writes an answer: a kill never leaves answers of unknown settings
        ranks.broadcast(f"{topic} begin", True)
        with AnswersFile(parts.part_of(plan.answers_file, ranks.index)) as answers:
            run.ask(todo, answers, loaded)
    skipped = [[bad.question.index, bad.reason] for bad in run.skipped]
    try:
        done = ranks.gather(f"{topic} done", {"session": run.session, "skipped": skipped})
    except BaseException:  # another process failed after this one had done its share
        run.interrupt()
        raise
    if ranks.index > 0:
        return None
    rows, _ = parts.gather(plan.answers_file)
    parts.finish(plan.answers_file, rows, {question.key: question.index for question in plan.known})
    run.finish(rows, [one["session"] for one in done], _all_skipped(plan, [one["skipped"] for one in done]))
    return run.record


def _found(plan: Plan, anew: bool) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The answers that are there, and the run file that describes them."""
    rows, repaired = parts.gather(plan.answers_file, anew)
    if repaired:
        print(f"warning: cut off {repaired} bytes of half-written lines of {plan.answers_file}", file=sys.stderr)
    if not rows:
        return rows, None
    earlier = read_run_file(run_file_of(plan.answers_file))
    check_settings(plan.answers_file, earlier, plan.settings)
    return rows, earlier


def _all_skipped(plan: Plan, by_rank: Sequence[list[tuple[int, str]]]) -> list[Skipped]:
    """What any process skipped, in the order of the questions."""
    reasons = {index: reason for skipped in by_rank for index, reason in skipped}
    return [Skipped(question, reasons[question.index]) for question in plan.known if question.index in reasons]
