"""Two runs on the same questions: scores with intervals, answers fixed and broken, agreement, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.benchmarks import Benchmark
from llava.eval.metrics.answer_files import Key
from llava.eval.metrics.intervals import Clusters, paired_bootstrap, sign_test
from llava.eval.results.judging import judge_of
from llava.eval.runner.costs import STAGES
from llava.eval.runner.run import Run

FIGURES = ("flops", "flops_all_tokens", "kv_bytes", "prompt_tokens", "visual_tokens", "generated_tokens")
FIGURES += ("tokens_per_layer", "kept_tokens", *(f"{stage}_ms" for stage in STAGES))
MACHINE = ("device_name", "threads", "batch_size")
FAILED = 0.5
"""A score below it is a failure."""
_SAID = ("model", "model_base", "pruning_config", "question_file", "chunk")


def compare(
    a: Run,
    b: Run,
    benchmark: Benchmark | str | None = None,
    references: str | Path | None = None,
    judge: str | None = None,
    partial: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
    examples: int = 0,
    failed_by: Run | None = None,
) -> dict[str, Any]:
    """Compare run B with run A, question by question.

    Args:
        a: the run that the other is measured against, usually the dense one.
        b: the other run, of the same question file; other models and settings are allowed and noted.
        benchmark: see `judge_of`, as for the next two.
        references: file or folder of references.
        judge: how answers compare with references in a format of one's own.
        partial: allow unfinished runs and runs that answered different questions; the common ones are compared.
        resamples: draws of the bootstrap.
        seed: of the bootstrap.
        examples: how many broken and how many fixed answers to show, the first ones of the file.
        failed_by: a run of a control: only the questions that it fails are compared.

    Returns:
        JSON-ready: "a", "b" (name, answers, model, config), "questions", "partial", "notes", "agreement", "costs"
        {figure: {"a", "b", "ratio"}}; with references also "benchmark", "scored", "scores" {score: {"a", "b",
        "difference", "interval"}}, "clusters", "fixed", "broken", "p" and "examples"; with `failed_by` also "failed"
        (how many of "asked" the control fails, and their "percent").

    Raises:
        UserError: runs that cannot be compared (other questions, unfinished, nothing in common), or a benchmark,
            references or judge that were named and cannot be used; unnamed ones are a note.

    """
    keys, notes = _common(a, b, partial)
    notes += _differences(a, b)
    failed = {}
    if failed_by is not None:
        answered = [key for key in keys if key in failed_by.answers]
        keys = failed_questions(failed_by, answered, benchmark, references, judge)
        failed = {"by": failed_by.name, "asked": len(answered), "count": len(keys)}
        failed["percent"] = 100 * len(keys) / len(answered)
        notes.append(f"only the {len(keys)} of {len(answered)} questions that {failed_by.answers_file} fails")
    agreement = a.agreement(b, keys)
    result: dict[str, Any] = {
        "a": _describe(a),
        "b": _describe(b),
        "questions": len(keys),
        "partial": any(note.startswith("PARTIAL") for note in notes),
        "notes": notes,
        "agreement": {
            "equal": agreement.equal,
            "percent": agreement.percent,
            "interval": [agreement.low, agreement.high],
        },
        "costs": _costs(a, b, keys),
    }
    if failed:
        result["failed"] = failed
    try:
        judging = judge_of(a, benchmark, references, judge)
        both = [judging.scores(run) for run in (a, b)]
        scored = [key for key in keys if all(key in scores for scores in both)]
        if not scored:
            raise UserError(f"{judging.references} has none of the {len(keys)} questions that both runs answered")
    except ValueError as error:
        if benchmark or references or judge:
            raise
        notes.append(f"no scores: {error} (--benchmark and --references name others)")
        return result
    if len(scored) < len(keys):
        missing = len(keys) - len(scored)
        notes.append(f"{missing} questions are not in {judging.references}, or do not count, and have no score")
    before, after = ({key: scores[key] for key in scored} for scores in both)
    drawn = Clusters.by_image(scored, a.images, judging.benchmark.stratum)
    terms = [judging.benchmark.quoted_terms(scores) for scores in (before, after)]
    pairs = {name: (drawn.terms(terms[0][name]), drawn.terms(terms[1][name])) for name in terms[0]}
    intervals = paired_bootstrap(pairs, drawn.strata, resamples, seed)
    changes = {"broken": [key for key in scored if after[key] < before[key]]}
    changes["fixed"] = [key for key in scored if after[key] > before[key]]
    fixed, broken = len(changes["fixed"]), len(changes["broken"])
    return result | {
        "benchmark": judging.benchmark.kind,
        "references": str(judging.references),
        "scored": len(scored),
        "scores": {
            name: {"a": x.value, "b": y.value, "difference": y.value - x.value, "interval": intervals[name]}
            for name, (x, y) in pairs.items()
        },
        "clusters": {"by": "question id" if a.images is None else "image", "count": drawn.count},
        "resamples": resamples,
        "seed": seed,
        "fixed": fixed,
        "broken": broken,
        "p": sign_test(fixed, broken),
        "examples": [
            {
                "change": change,
                "question_id": key[0],
                "prompt": key[1],
                "a": {"text": a.answers[key].text, "score": before[key]},
                "b": {"text": b.answers[key].text, "score": after[key]},
            }
            for change, found in changes.items()
            for key in found[:examples]
        ],
    }


def failed_questions(
    control: Run,
    keys: Sequence[Key],
    benchmark: Benchmark | str | None = None,
    references: str | Path | None = None,
    judge: str | None = None,
) -> list[Key]:
    """Return the questions among `keys` that a control's run fails (see `judge_of` for the last three).

    Raises:
        UserError: the control answered none of them, fails none, or cannot be scored.

    """
    scores = judge_of(control, benchmark, references, judge).scores(control)
    if not any(key in scores for key in keys):
        raise UserError(f"{control.answers_file} has scores for none of the questions that are compared")
    failed = [key for key in keys if key in scores and scores[key] < FAILED]
    if not failed:
        raise UserError(f"{control.answers_file} fails none of the questions that are compared")
    return failed


def _describe(run: Run) -> dict[str, Any]:
    return {"name": run.name, "answers": str(run.answers_file), "model": run.model, "pruning_config": run.config}


def _common(a: Run, b: Run, partial: bool) -> tuple[list[Key], list[str]]:
    files = [run.settings.get("question_file") for run in (a, b)]
    if files[0] != files[1]:
        raise UserError(
            f"the runs were asked different question files: {a.question_file} ({files[0]}) and "
            f"{b.question_file} ({files[1]}); compare runs of one benchmark"
        )
    notes = [f"PARTIAL: {run.answers_file} is unfinished: {run.problem}" for run in (a, b) if run.problem]
    if notes and not partial:
        run = a if a.problem else b
        raise UserError(
            f"{run.answers_file} is unfinished ({run.problem}); finish it with its own command, or pass "
            "--allow-partial to compare the common questions"
        )
    keys = [key for key in a.answers if key in b.answers]
    if not keys:
        raise UserError(f"{a.answers_file} and {b.answers_file} have no answered question in common")
    alone = len(a.answers) - len(keys), len(b.answers) - len(keys)
    if any(alone):
        counts = f"{len(keys)} questions are answered in both runs, {alone[0]} only in A, {alone[1]} only in B"
        if not partial:
            raise UserError(f"{counts}; pass --allow-partial to compare the common ones")
        notes.append(f"PARTIAL: {counts}; only the common ones are compared")
    elif a.left_out:
        notes.append(f"PARTIAL: questions: {a.left_out}")
    return keys, notes


def _differences(a: Run, b: Run) -> list[str]:
    def differing(names: Sequence[str], one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
        return [
            f"{name} differs: {one.get(name)} and {other.get(name)}"
            for name in names
            if one.get(name) != other.get(name)
        ]

    notes = [f"the models differ: {a.model} and {b.model}"] if a.model != b.model else []
    notes += differing(sorted((set(a.settings) | set(b.settings)) - set(_SAID)), a.settings, b.settings)
    return notes + [f"{note}; milliseconds do not compare" for note in differing(MACHINE, a.record, b.record)]


def _costs(a: Run, b: Run, keys: Sequence[Key]) -> dict[str, dict[str, float | None]]:
    """Means per question of both runs, and B as a multiple of A (None where A has nothing)."""
    mine, other = a.costs_of(keys).per_question(), b.costs_of(keys).per_question()
    return {
        name: {"a": mine[name], "b": other[name], "ratio": other[name] / mine[name] if mine[name] else None}
        for name in FIGURES
    }
