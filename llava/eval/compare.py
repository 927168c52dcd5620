"""Two runs on the same questions: scores, answers fixed and broken, agreement, cost (`--help` teaches)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import ScoreError
from llava.eval.results.compare_tables import print_comparison
from llava.eval.results.question_scores import SCORERS, QuestionScores, find_annotations
from llava.eval.results.resampling import clusters, paired_bootstrap, quoted, share_interval, sign_test
from llava.eval.results.runs import EvalRun, Key, RunError, read_run
from llava.eval.runner.totals import STAGES, Totals

EPILOG = """
A RUN is X.jsonl of llava.eval.model_vqa_loader (X.run.json must lie beside it), X.run.json, or a folder with one run,
whose chunks are put together. Both must have been asked the same question file.

example, dense against pruned:
  python -m llava.eval.compare runs/quickstart/gqa_mini/dense.jsonl runs/quickstart/gqa_mini/paper.jsonl --examples 3

fixed, broken    answers that B scores higher, or lower, than A does: wrong to right and right to wrong, scored 0 or 1
interval         95%, paired bootstrap: images are drawn with all their questions, MME's within their task
p                exact and two-sided, that fixed and broken are equally likely (McNemar's test for scores of 0 and 1)
agreement        share of answers that are the same text, with Wilson's 95% interval
cost             a question, from the traces in the answers; milliseconds as measured in each run, one after the other:
                 for a speed-up that can be trusted use the paired timing of llava.eval.suite

The last line of the output is one JSON object. Exit status: 0, 1 after one line on stderr, 2 for a wrong command line.
"""

DIFFERENT_MACHINES = ("device_name", "threads", "batch_size")


def compare(
    a: EvalRun,
    b: EvalRun,
    benchmark: str | None = None,
    annotations: str | Path | None = None,
    partial: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
    examples: int = 0,
) -> dict[str, Any]:
    """Compare run B with run A, question by question.

    Args:
        a: the run that the other is measured against, usually the dense one.
        b: the other run, of the same question file; other models and settings are allowed and noted.
        benchmark: a name of `question_scores.SCORERS`; default: by the question file's folder.
        annotations: the benchmark's annotations; default: where LLaVA's layout has them beside the question file.
        partial: allow unfinished runs and runs that answered different questions; the common ones are compared.
        resamples: draws of the bootstrap.
        seed: of the bootstrap.
        examples: how many broken and how many fixed answers to show, the first ones of the file.

    Returns:
        JSON-ready: "a", "b" (name, answers, model, config), "questions", "partial", "notes", "agreement", "costs"
        {figure: {"a", "b", "ratio"}}; with annotations also "benchmark", "scored", "scores" {score: {"a", "b",
        "difference", "interval"}}, "clusters", "fixed", "broken", "p" and "examples".

    Raises:
        RunError: runs that cannot be compared (other questions, unfinished, nothing in common).
        ScoreError: a benchmark or annotations were named and cannot be used; unnamed ones are a note.

    """
    keys, notes = _common(a, b, partial)
    notes += _differences(a, b)
    equal = sum(a.answers[key].text.strip() == b.answers[key].text.strip() for key in keys)
    result: dict[str, Any] = {
        "a": _describe(a),
        "b": _describe(b),
        "questions": len(keys),
        "partial": any(note.startswith("PARTIAL") for note in notes),
        "notes": notes,
        "agreement": {
            "equal": equal,
            "percent": 100 * equal / len(keys),
            "interval": share_interval(equal, len(keys)),
        },
        "costs": _costs(a.costs_of(keys), b.costs_of(keys)),
    }
    try:
        kind, path = find_annotations(a.question_file, benchmark, annotations)
        scorer = SCORERS[kind].scores
        scores = [scorer(a.question_file, path, [run.answers[key] for key in keys]) for run in (a, b)]
        scored = [key for key in keys if key in scores[0] and key in scores[1]]
        if not scored:
            raise ScoreError(f"{path} has none of the {len(keys)} questions that both runs answered")
    except ScoreError as error:
        if benchmark or annotations:
            raise
        notes.append(f"no scores: {error}")
        return result
    if len(scored) < len(keys):
        notes.append(f"{len(keys) - len(scored)} questions are not in {path}, or do not count, and have no score")
    before, after = ({key: one[key] for key in scored} for one in scores)
    result |= {"benchmark": kind, "annotations": str(path), "scored": len(scored)}
    result |= _statistics(kind, before, after, a.images, resamples, seed)
    result["examples"] = [
        {"change": change} | _example(key, a, b, before, after)
        for change, sign in (("broken", -1), ("fixed", 1))
        for key in [key for key in scored if sign * (after[key] - before[key]) > 0][:examples]
    ]
    return result


def _describe(run: EvalRun) -> dict[str, Any]:
    config = run.settings.get("pruning_config")
    return {"name": run.name, "answers": str(run.answers_file), "model": run.model, "pruning_config": config}


def _common(a: EvalRun, b: EvalRun, partial: bool) -> tuple[list[Key], list[str]]:
    files = [run.settings.get("question_file") for run in (a, b)]
    if files[0] != files[1]:
        raise RunError(
            f"the runs were asked different question files: {a.question_file} ({files[0]}) and "
            f"{b.question_file} ({files[1]}); compare runs of one benchmark"
        )
    notes = [f"PARTIAL: {run.answers_file} is unfinished: {run.problem}" for run in (a, b) if run.problem]
    if notes and not partial:
        run = a if a.problem else b
        raise RunError(
            f"{run.answers_file} is unfinished ({run.problem}); finish it with its own command, or pass "
            "--allow-partial to compare the common questions"
        )
    keys = [key for key in a.answers if key in b.answers]
    if not keys:
        raise RunError(f"{a.answers_file} and {b.answers_file} have no answered question in common")
    alone = len(a.answers) - len(keys), len(b.answers) - len(keys)
    if any(alone):
        counts = f"{len(keys)} questions are answered in both runs, {alone[0]} only in A, {alone[1]} only in B"
        if not partial:
            raise RunError(f"{counts}; pass --allow-partial to compare the common ones")
        notes.append(f"PARTIAL: {counts}; only the common ones are compared")
    elif a.left_out:
        notes.append(f"PARTIAL: questions: {a.left_out}")
    return keys, notes


def _differences(a: EvalRun, b: EvalRun) -> list[str]:
    notes = []
    if a.model != b.model:
        notes.append(f"the models differ: {a.model} and {b.model}")
    told = ("model", "model_base", "pruning_config", "question_file", "chunk")
    for name in sorted((set(a.settings) | set(b.settings)) - set(told)):
        if a.settings.get(name) != b.settings.get(name):
            notes.append(f"{name} differs: {a.settings.get(name)} and {b.settings.get(name)}")
    for name in DIFFERENT_MACHINES:
        if a.record.get(name) != b.record.get(name):
            values = f"{a.record.get(name)} and {b.record.get(name)}"
            notes.append(f"{name} differs: {values}; milliseconds do not compare")
    return notes


def _costs(a: Totals, b: Totals) -> dict[str, dict[str, float | None]]:
    """Means over questions of both runs, and B as a multiple of A (None where A has nothing)."""

    def means(totals: Totals) -> dict[str, float]:
        sums = totals.to_dict()
        names = ("flops", "flops_all_tokens", "kv_bytes", "prompt_tokens", "visual_tokens", "generated_tokens")
        found = {name: sums[name] / totals.questions for name in names}
        found |= {"tokens_per_layer": sums["tokens_mean"], "kept_tokens": sums["kept_tokens_mean"]}
        return found | {f"{stage}_ms": sums["milliseconds"][stage] / totals.questions for stage in STAGES}

    mine, other = means(a), means(b)
    return {
        name: {"a": mine[name], "b": other[name], "ratio": other[name] / mine[name] if mine[name] else None}
        for name in mine
    }


def _statistics(
    kind: str,
    before: QuestionScores,
    after: QuestionScores,
    images: Mapping[Key, str] | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Scores, intervals and changes from the scores of the same questions in both runs."""
    drawn = clusters(kind, list(before), images)
    one, other = quoted(kind, before, drawn), quoted(kind, after, drawn)
    pairs = {name: (one[name], other[name]) for name in one}
    intervals = paired_bootstrap(pairs, drawn.strata, resamples, seed)
    fixed, broken = (sum(sign * (after[key] - before[key]) > 0 for key in before) for sign in (1, -1))
    return {
        "scores": {
            name: {"a": x.value, "b": y.value, "difference": y.value - x.value, "interval": intervals[name]}
            for name, (x, y) in pairs.items()
        },
        "clusters": {"by": "question id" if images is None else "image", "count": drawn.count},
        "resamples": resamples,
        "seed": seed,
        "fixed": fixed,
        "broken": broken,
        "p": sign_test(fixed, broken),
    }


def _example(key: Key, a: EvalRun, b: EvalRun, before: QuestionScores, after: QuestionScores) -> dict[str, Any]:
    return {
        "question_id": key[0],
        "prompt": key[1],
        "a": {"text": a.answers[key].text, "score": before[key]},
        "b": {"text": b.answers[key].text, "score": after[key]},
    }


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.compare",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run_a", metavar="RUN_A", help="what RUN_B is measured against, usually the dense run")
    add("run_b", metavar="RUN_B", help="the other run, of the same question file")
    add("--benchmark", choices=list(SCORERS), help="default: by the name of the question file's folder")
    add("--annotations", help="default: where LLaVA's layout has them, beside the question file")
    add("--allow-partial", action="store_true", help="compare the common questions of unfinished or unequal runs")
    add("--examples", type=_count, default=0, metavar="N", help="show the first N broken and the first N fixed answers")
    add("--resamples", type=_some, default=10_000, help="draws of the bootstrap (default 10000)")
    add("--seed", type=_count, default=0, help="of the bootstrap (default 0)")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _some(text: str) -> int:
    value = _count(text)
    if value < 1:
        raise ValueError
    return value


_count.__name__, _some.__name__ = "number ≥ 0", "number ≥ 1"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        result = compare(
            read_run(args.run_a),
            read_run(args.run_b),
            args.benchmark,
            args.annotations,
            args.allow_partial,
            args.resamples,
            args.seed,
            args.examples,
        )
    except (RunError, ScoreError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print_comparison(result)
    print(json.dumps(result, separators=(",", ":")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
