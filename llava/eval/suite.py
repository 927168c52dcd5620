r"""Several benchmarks under several pruning configs, side by side: one table, `summary.json` and `summary.png`.

    python -m llava.eval.suite --model-path playground/checkpoints/llava-tiny \
        --benchmarks gqa_mini mme_mini textvqa_mini --config paper=playground/checkpoints/llava-tiny/pruning.json

Every config is run and scored as `llava.eval.run` does it (so that runs resume), beside a dense run of the untouched
model. Prefill time is then measured apart, the configs taking turns on the same
questions (`llava.eval.runner.paired`): the speed-up is the median over rounds of dense time by pruned time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llava.eval.benchmarks import BENCHMARKS, find_benchmark
from llava.eval.model_vqa_loader import command_of, number
from llava.eval.results.formats import beside_dense
from llava.eval.results.plots import summary_plot
from llava.eval.runner.jobs import Job, do, make_job
from llava.eval.runner.paired import paired_times
from llava.eval.runner.ranks import Ranks
from llava.eval.runner.running import Loader
from llava.files import replacing
from llava.model.checkpoint import find_source
from llava.model.preflight import resolve
from llava.model.pruning import PruningConfig

DENSE = "dense"
LOADER_SETTINGS = ("model_path", "batch_size", "max_new_tokens", "device", "dtype", "limit", "overwrite")


def job_of(args: argparse.Namespace, folder: Path, name: str, config: PruningConfig | None) -> Job:
    """Check one benchmark, by its folder, under one config; raises what `make_job` raises."""
    settings = {key: getattr(args, key) for key in LOADER_SETTINGS}
    settings["pruning_config"] = None if config is None else json.dumps(config.to_dict())
    benchmark = find_benchmark(folder.name)
    if benchmark.score is None:
        raise ValueError(f"{benchmark.title} is scored by a server, so that it has no place in a suite")
    return make_job(benchmark, folder.parent, args.out, name, settings)


def run_one(
    args: argparse.Namespace, folder: Path, name: str, config: PruningConfig | None, loader: Loader | None = None
) -> dict[str, Any]:
    """Answer one benchmark under one config (resuming) and score it."""
    job = job_of(args, folder, name, config)
    result = do(job, command_of(job.args), loader or Loader(), Ranks())
    record = result.record
    device = record.get("device_name") or record.get("device") or "unknown"
    return {"score": result.scores, "figure": result.scores.quoted, "totals": record["totals"], "device": device}


def summarize(runs: dict[str, dict[str, dict]], times: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Put the figures of each config together; FLOPs and KV bytes are means over all questions of all benchmarks."""
    rows = {}
    for name, by_benchmark in runs.items():
        totals = [run["totals"] for run in by_benchmark.values()]
        questions = sum(part["questions"] for part in totals)

        def mean(key, totals=totals, questions=questions):
            return sum(part[key] for part in totals) / questions

        layers = zip(*(part["tokens_per_layer_mean"] for part in totals), strict=True)
        weights = [part["questions"] for part in totals]
        per_layer = [sum(n * w for n, w in zip(layer, weights, strict=True)) / questions for layer in layers]
        rows[name] = {
            "scores": {benchmark: run["figure"] for benchmark, run in by_benchmark.items()},
            "accuracy": {benchmark: run["score"]["accuracy"] for benchmark, run in by_benchmark.items()},
            "questions": questions,
            "tokens_per_layer": [round(n, 2) for n in per_layer],
            "mean_tokens_per_layer": round(sum(per_layer) / len(per_layer), 2),
            **{key: mean(key) for key in ("flops", "dense_flops", "flops_all_tokens", "dense_flops_all_tokens")},
            **{key: mean(key) for key in ("kv_bytes", "dense_kv_bytes")},
            **times[name],
        }
    return rows


def print_table(rows: dict[str, dict[str, Any]], console: Console) -> None:
    """Print the summary for people."""
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("config", no_wrap=True)
    benchmarks = list(next(iter(rows.values()))["scores"])
    headings = ("tokens\na layer", "FLOPs\nvisual", "FLOPs\nall tokens", "\nKV", "\nprefill", "\nspeed-up")
    units = {name: find_benchmark(name).unit for name in benchmarks}
    for heading in (*(f"{name}\n{units[name]}" for name in benchmarks), *headings):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(
            name,
            *(f"{row['scores'][benchmark]:.1f}" for benchmark in benchmarks),
            f"{row['mean_tokens_per_layer']:.1f}",
            beside_dense(f"{row['flops'] / 1e6:,.0f}M", row["flops"] / row["dense_flops"]),
            beside_dense(
                f"{row['flops_all_tokens'] / 1e6:,.0f}M", row["flops_all_tokens"] / row["dense_flops_all_tokens"]
            ),
            beside_dense(f"{row['kv_bytes'] / 1024:,.0f} KB", row["kv_bytes"] / row["dense_kv_bytes"]),
            f"{row['prefill_ms']:.2f} ms",
            f"{row['speedup']:.2f}×",
        )
    console.print(table)


def parse_config(text: str) -> tuple[str, PruningConfig]:
    """Read NAME=JSON or NAME=PATH of the command line."""
    name, equals, source = text.partition("=")
    if not equals or not name or name == DENSE or not name.replace("-", "").replace("_", "").isalnum():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=CONFIG, e.g. paper=pruning.json ({DENSE!r} is built in)"
        )
    try:
        return name, PruningConfig.from_json(source)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-path", required=True, help="checkpoint folder or hub name; docs/models.md lists the known models")
    add("--data-dir", default="playground/data/eval", help="folder of the benchmarks (default playground/data/eval)")
    add("--benchmarks", nargs="+", required=True, help=f"e.g. gqa_mini mme; known: {', '.join(BENCHMARKS)}")
    add("--config", action="append", type=parse_config, default=[], metavar="NAME=CONFIG", help="a pruning config")
    add("--out", default="runs/suite", help="folder for answers, summary.json and summary.png (default runs/suite)")
    add("--batch-size", type=number(int, 1), default=8, help="questions a batch (default 8)")
    add("--max-new-tokens", type=number(int, 1), default=16, help="longest answer in tokens (default 16)")
    add("--limit", type=number(int, 1), help="ask only the first questions of each benchmark; scores are then partial")
    add("--device", default="auto")
    add("--dtype", default="auto")
    add("--rounds", type=number(int, 1), default=7, help="rounds of the paired timing (default 7)")
    add(
        "--timed-questions",
        type=number(int, 1),
        default=64,
        help="questions of each benchmark that are timed (default 64)",
    )
    add("--overwrite", action="store_true", help="answer anew instead of resuming")
    return parser


def run_suite(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything that `args` asks for and write the summary; raises what the loader and the scorers raise."""
    configs: dict[str, PruningConfig | None] = {DENSE: None, **dict(args.config)}
    if len(configs) <= len(args.config) or len(set(args.benchmarks)) < len(args.benchmarks):
        raise ValueError("two configs, or two benchmarks, have one name: their answers would share a file")
    source = find_source(os.path.expanduser(args.model_path), "--model-path", {})
    for name, config in args.config:
        try:
            resolve(config, source)
        except ValueError as error:
            raise ValueError(f"config {name!r}: {error}") from None
    folders = [Path(args.data_dir) / find_benchmark(benchmark).folder for benchmark in args.benchmarks]
    jobs = {name: [job_of(args, folder, name, config) for folder in folders] for name, config in configs.items()}
    loader = Loader()
    runs: dict[str, dict[str, dict]] = {name: {} for name in configs}
    for name, config in configs.items():
        for folder in folders:
            print(f"{name} on {folder.name}", file=sys.stderr)
            runs[name][folder.name] = run_one(args, folder, name, config, loader)
    files = [(Path(job.args.question_file), Path(job.args.image_folder)) for job in jobs[DENSE]]
    print(f"timing {', '.join(configs)} in turn, {args.rounds} rounds", file=sys.stderr)
    times = paired_times(args, configs, files, baseline=DENSE)
    rows = summarize(runs, times)
    device = next(iter(runs[DENSE].values()))["device"]
    summary = {
        "model_path": args.model_path,
        "device": device,
        "batch_size": args.batch_size,
        "configs": {name: config and config.to_dict() for name, config in configs.items()},
        "rows": rows,
        "runs": {n: {b: {"score": r["score"], "totals": r["totals"]} for b, r in by.items()} for n, by in runs.items()},
    }
    out = Path(args.out)
    with replacing(out / "summary.json") as file:
        file.write(json.dumps(summary, indent=1) + "\n")
    summary_plot(rows, out / "summary.png", title=f"{Path(args.model_path).name} on {', '.join(args.benchmarks)}")
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        summary = run_suite(args)
    except KeyboardInterrupt:
        print("interrupted; the same command (without --overwrite) goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    console = Console(width=max(120, Console().width))
    print_table(summary["rows"], console)
    if args.limit is not None:
        print(f"PARTIAL: the first {args.limit} questions of each benchmark")
    print(f"{summary['device']}, batch {summary['batch_size']}; {args.out}/summary.json, {args.out}/summary.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
