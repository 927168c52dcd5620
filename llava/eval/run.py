"""Runs and scores benchmarks: asks a model, dense or pruned, with one process or many (`--help` teaches)."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llava.eval.benchmarks import BENCHMARKS, find_benchmarks
from llava.eval.model_vqa_loader import Parser, add_asking_options, add_model_options, number
from llava.eval.results.formats import beside_dense, bytes_text, config_text, count_text
from llava.eval.runner.jobs import Job, Result, check_answers, check_files, do, make_job
from llava.eval.runner.ranks import RankError, Ranks
from llava.eval.runner.running import Loader
from llava.mm_utils import get_model_name_from_path

EPILOG = f"""
benchmarks: {", ".join(BENCHMARKS)}; or a folder of --data-dir in the format of one of them, such as gqa_tune.
`python -m llava.eval.prepare` puts the files in their place, and docs/evaluation.md says what they are.

examples:
  the small model, pruned as its pruning.json says, on benchmarks that the first command writes
    python -m llava.tiny.benchmarks
    python -m llava.eval.run --benchmark gqa_mini,mme_mini --model-path playground/checkpoints/llava-tiny \\
        --pruning-config playground/checkpoints/llava-tiny/pruning.json --batch-size 16
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
server or grader scores, NAME.upload.*. A run that was interrupted, or in which a process failed, goes on where it
stopped when the same command is given again, with any number of processes. The last line of output is one JSON object.
Exit status: 0, 1 after one line on stderr, 2 for a wrong command line.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog="python -m llava.eval.run",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--benchmark", required=True, help="names with commas, e.g. gqa,mme,pope")
    add_model_options(parser)
    add("--data-dir", default="playground/data/eval", help="folder of the benchmarks (default playground/data/eval)")
    add("--split", help="another question file of the benchmark's folder, without .jsonl; for a single benchmark")
    add("--out", help="folder to write to (default runs/ and the model's name)")
    add("--name", help="name of the run's files (default pruned, or dense without --pruning-config)")
    add("--max_new_tokens", type=number(int, 1), help="longest answer in tokens (default: the benchmark's)")
    add("--batch-size", type=number(int, 1), default=8, help="questions a batch (default 8)")
    add_asking_options(parser)
    return parser


def make_jobs(args: argparse.Namespace, device: str | None = None) -> list[Job]:
    """Check everything that can be checked before the model loads, for all benchmarks.

    `device`: instead of the one in `args`. Raises `ValueError` (one line) for the first mistake.
    """
    benchmarks = find_benchmarks(args.benchmark)
    if args.split is not None:
        if len(benchmarks) > 1:
            raise ValueError(f"--split {args.split} is for a single benchmark, not for {args.benchmark}")
        benchmarks = [replace(benchmarks[0], questions=f"{args.split}.jsonl")]
    for benchmark in benchmarks:
        check_files(benchmark, benchmark.at(args.data_dir))
    own = ("benchmark", "data_dir", "split", "out", "name")
    settings = {key: value for key, value in vars(args).items() if key not in own} | {"device": device or args.device}
    name = args.name or ("dense" if args.pruning_config is None else "pruned")
    out = args.out or Path("runs") / get_model_name_from_path(args.model_path)
    return [make_job(benchmark, args.data_dir, out, name, settings) for benchmark in benchmarks]


def run(args: argparse.Namespace, command: str, ranks: Ranks) -> list[Result]:
    """Do all jobs, the model loaded once; the results are rank 0's, none elsewhere."""
    jobs = make_jobs(args, ranks.device)
    if ranks.index == 0:
        for job in jobs:
            job.benchmark.rehearse(job.folder)
            check_answers(job)
    loader = Loader()
    results = []
    for job in jobs:
        if ranks.index == 0:
            print(f"{job.benchmark.title}: {len(job.plan.selected)} questions", file=sys.stderr)
        results.append(do(job, command, loader, ranks))
    return [result for result in results if result is not None]


def table_of(results: Sequence[Result]) -> Table:
    """The results for people."""
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("benchmark", no_wrap=True)
    for heading in ("score", "", "questions", "tokens\na layer", "FLOPs\nvisual", "\nKV", "prefill\nms", "decode\nms"):
        table.add_column(heading, justify="left" if heading == "" else "right", no_wrap=True)
    for result in results:
        totals, benchmark = result.record["totals"], result.job.benchmark
        count = max(totals["questions"], 1)
        spent = totals["milliseconds"]
        if result.scores is not None:
            kind = f"{benchmark.unit} {result.scores['figure']}"
        else:
            kind = "for its server" if benchmark.judge is None else "nothing answered"
        table.add_row(
            benchmark.title,
            "–" if result.scores is None else f"{result.scores.quoted:.2f}",
            kind,
            f"{totals['questions']:,}" + (" PARTIAL" if result.partial else ""),
            f"{totals['tokens_mean']:.1f}",
            beside_dense(count_text(totals["flops"] / count), _share(totals, "flops")),
            beside_dense(bytes_text(totals["kv_bytes"] / count), _share(totals, "kv_bytes")),
            f"{spent['prefill'] / count:.1f}",
            f"{spent['decode'] / count:.1f}",
        )
    return table


def _share(totals: dict[str, Any], name: str) -> float:
    dense = totals[f"dense_{name}"]
    return totals[name] / dense if dense else 1.0


def summary_of(results: Sequence[Result]) -> dict[str, Any]:
    """The results for programs."""
    first = results[0]
    return {
        "model_path": str(first.job.args.model_path),
        "pruning_config": first.record["settings"]["pruning_config"],
        "benchmarks": {
            result.job.benchmark.name: {
                "answers": str(result.job.plan.answers_file),
                "upload": result.upload and str(result.upload),
                "partial": result.partial,
                "scores": result.scores,
                "totals": result.record["totals"],
                "time_shares": result.record.get("time_shares"),
            }
            for result in results
        },
    }


def report(results: Sequence[Result]) -> None:
    """Print the results: what was asked, a table, where the files are, and one JSON object as the last line."""
    console = Console(width=max(140, Console().width), highlight=False)
    config = results[0].record["settings"]["pruning_config"]
    console.print(f"{results[0].job.args.model_path}: {config_text(config)}", markup=False)
    console.print(table_of(results))
    for result in results:
        console.print(f"{result.upload or result.job.plan.answers_file}", markup=False)
    print(json.dumps(summary_of(results), separators=(",", ":")))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(words)
    command = shlex.join(["python", "-m", "llava.eval.run", *words])
    ranks = Ranks()
    try:
        ranks = Ranks.join(args.device)
        results = run(args, command, ranks)
        if ranks.index == 0:
            report(results)
    except KeyboardInterrupt:
        ranks.fail("interrupted")
        if ranks.index == 0:
            print("interrupted; the same command (without --overwrite) goes on from here", file=sys.stderr)
        return 130
    except RankError as error:
        print(f"error: {ranks.name} stops: {error}; the same command (without --overwrite) goes on", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if ranks.fail(reason):
            print(f"error: {reason}" + (f" ({ranks.name})" if ranks.count > 1 else ""), file=sys.stderr)
        return 1
    finally:
        ranks.leave()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
