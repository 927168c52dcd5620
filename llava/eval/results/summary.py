"""Output of `llava.eval.run`: one config on benchmarks, or several configs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.benchmarks import Benchmark
from llava.eval.results.formats import bytes_text, count_text
from llava.eval.results.table import Column, Table
from llava.eval.runner.costs import Costs
from llava.eval.runner.run import Run

Runs = Mapping[str, Run]
"""Name of a benchmark → its run."""

FLOPS = Column("flops", "FLOPs visual", count_text, share="visual_flops_share")
KV = Column("kv_bytes", "KV", bytes_text, share="kv_share")
TOKENS = Column("tokens_per_layer", "tokens per layer", ".1f")


def table_of_benchmarks(benchmarks: Sequence[Benchmark], runs: Runs) -> tuple[Table, list[str]]:
    """One config: a row per benchmark; and notes below the table."""
    columns = ["benchmark", "score", Column("questions", form=","), TOKENS, FLOPS, KV]
    columns += [Column("prefill_ms", "prefill ms", ".1f"), Column("decode_ms", "decode ms", ".1f")]
    table, notes = Table(columns), []
    for benchmark in benchmarks:
        run = runs[benchmark.name]
        score = "for its server" if benchmark.submit is not None else "not scored"
        if run.scores is not None:
            score = f"{quoted(run):.2f} {benchmark.unit}"
            if run.scores["figure"] != "accuracy":
                notes.append(f"{benchmark.title}: {run.scores['figure']}")
        if run.partial:
            notes.append(f"{benchmark.title}: PARTIAL, {run.problem or run.left_out}")
        table.add(benchmark=benchmark.title, score=score, **run.costs.per_question() | {"questions": len(run.answers)})
    return table, notes


def quoted(run: Run) -> float:
    """The score that people quote."""
    return run.scores[run.scores["figure"]]


def record_of_benchmarks(model_path: str, runs: Runs, uploads: Mapping[str, str | None]) -> dict[str, Any]:
    """One config, for programs."""
    return {
        "model_path": model_path,
        "pruning_config": next(iter(runs.values())).config,
        "benchmarks": {
            name: {
                "answers": str(run.answers_file),
                "upload": uploads[name],
                "partial": run.partial,
                "scores": run.scores,
                "totals": run.totals,
                "time_shares": run.record.get("time_shares"),
            }
            for name, run in runs.items()
        },
    }


def rows_of_configs(runs: Mapping[str, Runs], times: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Several configs: by name, the figures of each; FLOPs and KV bytes are means over all questions."""
    rows = {}
    for name, by_benchmark in runs.items():
        costs = Costs.of(trace for run in by_benchmark.values() for trace in run.traces.values())
        scored = {benchmark: run for benchmark, run in by_benchmark.items() if run.scores is not None}
        means = ("flops", "dense_flops", "flops_all_tokens", "dense_flops_all_tokens", "kv_bytes", "dense_kv_bytes")
        rows[name] = {
            "scores": {benchmark: quoted(run) for benchmark, run in scored.items()},
            "accuracy": {benchmark: run.scores["accuracy"] for benchmark, run in scored.items()},
            "questions": costs.questions,
            "tokens_per_layer": [round(tokens, 2) for tokens in costs.mean_tokens_per_layer],
            "mean_tokens_per_layer": round(costs.mean_tokens, 2),
            **{key: costs.mean(key) for key in means},
            "flops_share": costs.flops_share,
            "visual_flops_share": costs.visual_flops_share,
            "kv_share": costs.kv_share,
            **times.get(name, {}),
        }
    return rows


def table_of_configs(benchmarks: Sequence[Benchmark], rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Several configs: a row per config."""
    columns = ["config", *(Column(one.name, f"{one.name} {one.unit}", ".1f") for one in benchmarks)]
    columns += [Column("mean_tokens_per_layer", "tokens per layer", ".1f"), FLOPS]
    columns += [Column("flops_all_tokens", "FLOPs all tokens", count_text, share="flops_share"), KV]
    columns += [Column("prefill_ms", "prefill ms", ".2f"), Column("speedup", "speed-up", lambda value: f"{value:.2f}×")]
    columns += [Column("speedup_range", "range", lambda ends: f"{ends[0]:.2f}–{ends[1]:.2f}")]
    return Table(columns, [{"config": name} | dict(row) | dict(row["scores"]) for name, row in rows.items()])
