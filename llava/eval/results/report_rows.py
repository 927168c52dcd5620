"""The rows of `llava.eval.report`: what each run is called, and its figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import ScoreError
from llava.eval.results.formats import config_text
from llava.eval.results.question_scores import SCORERS, find_annotations
from llava.eval.results.resampling import clusters, quoted
from llava.eval.results.runs import EvalRun
from llava.eval.runner.totals import STAGES

Row = dict[str, Any]
COSTS = ("flops", "flops_all_tokens", "kv_bytes")


@dataclass(frozen=True)
class Labelled:
    """A run with the names that it has in a report: no two runs of one model and benchmark share one."""

    run: EvalRun
    model: str
    benchmark: str
    name: str


def label_runs(runs: Sequence[EvalRun]) -> list[Labelled]:
    """Name the runs, in groups of one model and benchmark, within them dense runs first and then by name.

    The benchmark is the question file's folder, numbered where another question file has a folder of that name; the
    model's hash or revision is shown only where two models have one name; a run's name is its answers file's,
    with as many of its folders as tell it from others.
    """
    models = _distinct([run.model for run in runs], [re.split("[:@]", run.model)[0] for run in runs])
    files = [(run.question_file.resolve().parent.name, run.settings.get("question_file")) for run in runs]
    by_name: dict[str, list[Any]] = {}
    for folder, file in dict.fromkeys(files):
        by_name.setdefault(folder, []).append(file)
    groups: dict[tuple[str, str], list[EvalRun]] = {}
    for run, model, (folder, file) in zip(runs, models, files, strict=True):
        number = by_name[folder].index(file) + 1
        benchmark = folder if number == 1 else f"{folder} ({number})"
        groups.setdefault((model, benchmark), []).append(run)
    return [
        Labelled(run, model, benchmark, name)
        for (model, benchmark), members in groups.items()
        for run, name in sorted(
            zip(members, _names(members), strict=True),
            key=lambda pair: (pair[0].settings.get("pruning_config") is not None, pair[1]),
        )
    ]


def _distinct(whole: Sequence[str], short: Sequence[str]) -> list[str]:
    meanings: dict[str, set[str]] = {}
    for long, name in zip(whole, short, strict=True):
        meanings.setdefault(name, set()).add(long)
    return [name if len(meanings[name]) == 1 else long for long, name in zip(whole, short, strict=True)]


def _names(runs: Sequence[EvalRun]) -> list[str]:
    names = [run.name for run in runs]
    folders = [list(run.answers_file.resolve().parent.parts) for run in runs]
    while any(twice := [names.count(name) > 1 for name in names]):
        above = [parts.pop() for parts in folders]
        names = [f"{up}/{name}" if again else name for up, name, again in zip(above, names, twice, strict=True)]
    return names


def make_row(one: Labelled, data_dir: str | Path | None) -> Row:
    """The figures of one run; means over its questions.

    data_dir: folder of the benchmarks; default: annotations are looked for beside the run's question file
    Raises `RunError` for an answer without trace.
    """
    run = one.run
    totals = run.costs
    sums, count = totals.to_dict(), totals.questions
    notes = [f"unfinished: {run.problem}"] if run.problem else []
    notes += [run.left_out] if run.left_out else []
    scores, problem = _scores(run, data_dir)
    notes += [f"no scores: {problem}"] if problem else []
    config = run.settings.get("pruning_config")
    saved = {key: 1 - sums[key] / sums[f"dense_{key}"] if sums[f"dense_{key}"] else 0.0 for key in COSTS}
    return {
        "model": one.model,
        "benchmark": one.benchmark,
        "run": one.name,
        "config": config_text(config),
        "dense": config is None,
        "questions": count,
        "scores": scores,
        **{key: sums[key] / count for key in COSTS},
        **{f"{key}_saved": share for key, share in saved.items()},
        "prompt_tokens": sums["prompt_tokens"] / count,
        "tokens_per_layer": sums["tokens_mean"],
        "kept_tokens": sums["kept_tokens_mean"],
        "generated_tokens": sums["generated_tokens"] / count,
        **{f"{stage}_ms": sums["milliseconds"][stage] / count for stage in STAGES},
        "device": run.record.get("device_name") or run.record.get("device"),
        "batch_size": run.record.get("batch_size"),
        "dtype": run.settings.get("dtype"),
        "answers": str(run.answers_file),
        "notes": notes,
    }


def _scores(run: EvalRun, data_dir: str | Path | None) -> tuple[dict[str, float], str | None]:
    """The quoted scores, or none and why."""
    question_file = run.question_file
    if data_dir is not None:
        question_file = Path(data_dir) / question_file.resolve().parent.name / question_file.name
    try:
        kind, annotations = find_annotations(question_file)
        judged = SCORERS[kind].scores(question_file, annotations, run.answers.values())
    except ScoreError as error:
        return {}, str(error)
    if not judged:
        return {}, f"{annotations} has none of the questions"
    scores = quoted(kind, judged, clusters(kind, list(judged), images=None))
    return {name: terms.value for name, terms in scores.items()}, None


def note_unequal(labelled: Sequence[Labelled], rows: Sequence[Row]) -> None:
    """Note in the row of every run that did not answer the questions of the first of its model and benchmark."""
    first: dict[tuple[str, str], Labelled] = {}
    for one, row in zip(labelled, rows, strict=True):
        other = first.setdefault((one.model, one.benchmark), one)
        if one.run.answers.keys() != other.run.answers.keys():
            row["notes"].append(f"other questions than {other.name}: their scores do not compare")
