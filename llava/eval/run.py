"""Run and score benchmarks: dense or under one or several pruning configs, with one process or many."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.cli import (
    GenerationOptions,
    ModelOptions,
    OutputOptions,
    UserError,
    command_of,
    number,
    option,
    print_json,
    run_command,
)
from llava.eval.benchmarks import BENCHMARKS, Benchmark, find_benchmarks, question_set
from llava.eval.results.plots import PlotOptions

if TYPE_CHECKING:
    from llava.eval.runner.distributed import Ranks
    from llava.eval.runner.run import Run
    from llava.model.pruning import PruningConfig

PROG = "python -m llava.eval.run"
EPILOG = f"""
benchmarks: {", ".join(BENCHMARKS)}; or a folder of --data-dir in the format of one of them, such as gqa_tune.
`python -m llava.eval.prepare` puts the files in their place, and docs/evaluation.md says what they are.

examples:
  the small model, pruned as its pruning.json says, on benchmarks that the first command writes
    python -m llava.tiny.benchmarks
    python -m llava.eval.run --benchmark gqa_mini,mme_mini --model-path playground/checkpoints/llava-tiny \\
        --pruning-config playground/checkpoints/llava-tiny/pruning.json --batch-size 16
  several configs side by side, beside dense, with paired prefill times
    python -m llava.eval.run --benchmark gqa_mini,mme_mini --model-path playground/checkpoints/llava-tiny \\
        --config paper=playground/checkpoints/llava-tiny/pruning.json \\
        --config fastv='{{"method":"fastv","k":2,"r":0.5}}'
  questions of your own
    python -m llava.eval.run --questions q.jsonl --images photos --references answers.jsonl --judge exact --model-path …
  LLaVA-1.5-7B with the paper's settings, on one GPU
    python -m llava.eval.run --benchmark gqa,mme,textvqa,pope --model-path liuhaotian/llava-v1.5-7b \\
        --pruning-config '{{"mode":["shallow","middle","deep"],"shallow_mid_layer":6,
                           "layer_threshold":0.995,"tokens_threshold":0.2}}'
  the same on eight GPUs; on two machines with --num_machines 2 …, and --out in a folder that both see
    accelerate launch --multi_gpu --num_processes 8 -m llava.eval.run …
  two processes on CPU
    accelerate launch --multi_gpu --num_processes 2 -m llava.eval.run --device cpu …

Writes OUT/BENCHMARK/NAME.jsonl (LLaVA's answer lines with each prompt's trace: the same bytes with any number of
processes), NAME.times.jsonl (its milliseconds), NAME.run.json (settings, totals, scores) and, where an evaluation
server or grader scores, NAME.upload.*; with --config also OUT/summary.json and OUT/summary.png. A run that was
interrupted, or in which a process failed, continues where it stopped when the same command is given again, with any
number of processes. Elsewhere than in a terminal, the last line of output is one JSON object.
Exit status: 0, 1 after one line on stderr, 2 for a wrong command line.
"""


@dataclass(kw_only=True)
class Options(ModelOptions, GenerationOptions, PlotOptions, OutputOptions):
    """Options of the command. With --config, --pruning-config is one more config, named by --name."""

    benchmark: str | None = option(
        None, help="names with commas, e.g. gqa,mme,pope; or path/to/file.py:MY_BENCHMARK", aliases=("--benchmarks",)
    )
    questions: str | None = option(
        None, help="a question file of your own in place of --benchmark (docs/your-own-data.md)", metavar="FILE"
    )
    images: str | None = option(
        None, help="with --questions: folder of the images (default: the file's)", metavar="FOLDER"
    )
    references: str | None = option(None, help="with --questions: JSONL with the right answers", metavar="FILE")
    judge: str | None = option(
        None, help="with --references: rule of comparison: exact, vqa, yes_no, choice, anls, contains"
    )
    data_dir: str = option("playground/data/eval", help="folder of the benchmarks (default playground/data/eval)")
    split: str | None = option(
        None, help="another question file of the benchmark's folder, without .jsonl; for a single benchmark"
    )
    config: list[str] = option(
        [],
        help="a pruning config to compare with dense and other configs; may be given again",
        metavar="NAME=CONFIG",
        repeated=True,
    )
    out: str | None = option(None, help="folder to write to (default runs/ and the model's name)")
    name: str | None = option(None, help="name of the run's files (default pruned, or dense without --pruning-config)")
    rounds: int = option(
        7, help="with --config: rounds of paired prefill timing (default 7; 0: none)", type=number(int, 0)
    )
    timed_questions: int = option(
        64, help="with --config: questions of each benchmark that are timed (default 64)", type=number(int, 1)
    )


def work(options: Options, side_by_side: bool = False) -> int:
    """Run the command; returns the exit status."""
    benchmarks_of(options)  # mistakes in it are said before torch is imported
    from llava.eval.runner.distributed import together

    return together(options.device, lambda ranks: evaluate(options, ranks, side_by_side or bool(options.config)))


def evaluate(options: Options, ranks: Ranks, side_by_side: bool) -> None:
    """Check every benchmark under every config, run them all, and print the results."""
    from llava.eval.runner.evaluator import Evaluator
    from llava.mm_utils import get_model_name_from_path

    configs = configs_of(options, side_by_side)
    benchmarks = benchmarks_of(options)
    evaluator = Evaluator(options, command_of(PROG, options), ranks)
    out = Path(options.out or Path("runs") / get_model_name_from_path(options.model_path)).expanduser()
    plans = {}
    for name, config in configs.items():
        for benchmark in benchmarks:
            answers_file = out / benchmark.name / f"{name}.jsonl"
            try:
                plan = evaluator.plan(benchmark, benchmark.at(options.data_dir), answers_file, config)
            except ValueError as error:
                raise UserError(f"config {name!r}: {error}" if side_by_side and config else str(error)) from None
            plans[name, benchmark.name] = plan
    runs: dict[str, dict[str, Run]] = {name: {} for name in configs}
    for (name, benchmark), plan in plans.items():
        if ranks.index == 0:
            print(f"{name} on {plan.benchmark.title}: {len(plan.selected)} questions", file=sys.stderr)
        runs[name][benchmark] = evaluator.run(plan)
    if ranks.index == 0:
        if side_by_side:
            report_configs(options, evaluator, benchmarks, configs, runs, plans, out)
        else:
            report_benchmarks(options, benchmarks, next(iter(runs.values())), plans)


def configs_of(options: Options, side_by_side: bool) -> dict[str, PruningConfig | None]:
    """The configs by name: --pruning-config's, and with --config dense and all of those."""
    from llava.eval.runner.evaluator import DENSE, named_configs
    from llava.model.preflight import config_of

    config = config_of(options)
    name = options.name or (DENSE if config is None else "pruned")
    beside = named_configs(options.config)
    if not side_by_side:
        return {name: config}
    if config is not None and name in (DENSE, *beside):
        raise UserError(f"two configs have the name {name!r}: --name gives another to that of --pruning-config")
    return {DENSE: None} | ({} if config is None else {name: config}) | beside


def benchmarks_of(options: Options) -> list[Benchmark]:
    """The benchmarks of --benchmark, or the one that --questions makes."""
    own = {name: getattr(options, name) for name in ("questions", "images", "references", "judge")}
    if (options.benchmark is None) == (options.questions is None):
        raise UserError("what shall be asked? give --benchmark or --questions, one of them")
    if options.questions is not None:
        return [question_set(**own)]
    if any(own.values()):
        raise UserError("--images, --references and --judge go with --questions, not with --benchmark")
    benchmarks = find_benchmarks(options.benchmark)
    if options.split is not None:
        if len(benchmarks) > 1:
            raise UserError(f"--split {options.split} is for a single benchmark, not for {options.benchmark}")
        benchmarks = [replace(benchmarks[0], questions=f"{options.split}.jsonl")]
    return benchmarks


def report_benchmarks(options: Options, benchmarks: list[Benchmark], runs: dict[str, Run], plans: Any) -> None:
    """Print one config's results: what was asked, a table, where the files are, and JSON."""
    from llava.eval.results import summary
    from llava.eval.results.formats import config_text
    from llava.eval.runner.evaluator import upload_file_of

    uploads = {benchmark: upload_file_of(plan) for (_, benchmark), plan in plans.items()}
    written = {name: str(path) if path.is_file() else None for name, path in uploads.items()}
    title = f"{options.model_path}: {config_text(next(iter(runs.values())).config)}"
    table, notes = summary.table_of_benchmarks(benchmarks, runs)
    table.print(title, notes)
    for name, run in runs.items():
        print(written[name] or run.answers_file)
    print_json(summary.record_of_benchmarks(options.model_path, runs, written), options)


def report_configs(options, evaluator, benchmarks, configs, runs, plans, out: Path) -> None:
    """Time the configs in turn, write summary.json and summary.png, and print the table."""
    from llava.eval.results import summary
    from llava.eval.results.plots import summary_plot
    from llava.eval.runner.evaluator import DENSE
    from llava.eval.runner.paired import paired_times
    from llava.files import replacing

    times = {}
    if options.rounds:
        print(f"timing {', '.join(configs)} in turn, rounds: {options.rounds}", file=sys.stderr)
        asked = [plans[DENSE, benchmark.name].selected[: options.timed_questions] for benchmark in benchmarks]
        batches = [batch for part in asked for batch in evaluator.batches(part)]
        resolved = {name: plans[name, benchmarks[0].name].config for name in configs}
        times = paired_times(evaluator.loaded, batches, resolved, baseline=DENSE, rounds=options.rounds)
    rows = summary.rows_of_configs(runs, times)
    dense = next(iter(runs[DENSE].values()))
    record = {
        "model_path": options.model_path,
        "device": dense.record.get("device_name") or dense.record.get("device") or "unknown",
        "batch_size": options.batch_size,
        "configs": {name: config and config.to_dict() for name, config in configs.items()},
        "rows": rows,
        "runs": {n: {b: {"score": r.scores, "totals": r.totals} for b, r in by.items()} for n, by in runs.items()},
    }
    with replacing(out / "summary.json") as file:
        file.write(json.dumps(record, indent=1) + "\n")
    files = [out / "summary.json"]
    if all(row["accuracy"] for row in rows.values()):
        title = f"{Path(options.model_path).name} on {', '.join(benchmark.name for benchmark in benchmarks)}"
        files.append(summary_plot(rows, out / "summary.png", title=title, options=options))
    summary.table_of_configs(benchmarks, rows).print(options.model_path)
    partial = {run.left_out for by in runs.values() for run in by.values() if run.left_out}
    for left_out in sorted(partial):
        print(f"PARTIAL: {left_out}")
    print(f"{record['device']}, batch {options.batch_size}; {', '.join(map(str, files))}")
    print_json({"summary": str(files[0]), "rows": rows}, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog=PROG, description=__doc__, epilog=EPILOG)


if __name__ == "__main__":
    raise SystemExit(main())
