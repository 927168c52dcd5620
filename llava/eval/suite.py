"""`llava.eval.run` under its old name, for benchmarks × configs side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava.cli import number, option, run_command
from llava.eval import run


@dataclass(kw_only=True)
class Options(run.Options):
    """What is asked."""

    benchmark: list[str] = option(help="names, e.g. gqa_mini mme", aliases=("--benchmarks",), many=True)
    out: str = option("runs/suite", help="folder for answers, summary.json and summary.png (default runs/suite)")
    max_new_tokens: int = option(16, help="longest answer in tokens (default 16)", type=number(int, 1))


def work(options: Options) -> int:
    """Run the command; returns the exit status."""
    return run.work(replace(options, benchmark=",".join(options.benchmark)), side_by_side=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog="python -m llava.eval.suite", description=run.__doc__)


# Old names, until every caller uses `llava.eval.runner.evaluator`.
DENSE = "dense"


def parse_config(text):
    import argparse

    from llava.eval.runner.evaluator import named_configs

    try:
        return next(iter(named_configs([text]).items()))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def job_of(args, folder, name, config):
    from llava.eval.benchmarks import find_benchmark
    from llava.eval.runner.jobs import make_job

    names = ("model_path", "batch_size", "max_new_tokens", "device", "dtype", "limit", "overwrite")
    settings = {key: getattr(args, key) for key in names}
    settings["pruning_config"] = None if config is None else json.dumps(config.to_dict())
    benchmark = find_benchmark(folder.name)
    if benchmark.judge is None:
        raise ValueError(f"{benchmark.title} is scored by a server, so that it has no place in a suite")
    return make_job(benchmark, folder.parent, args.out, name, settings)


def run_one(args, folder, name, config, loader=None):
    from llava.eval.runner.jobs import do
    from llava.eval.runner.ranks import Ranks
    from llava.eval.runner.running import Loader

    result = do(job_of(args, folder, name, config), "", loader or Loader(), Ranks())
    record = result.record
    device = record.get("device_name") or record.get("device") or "unknown"
    return {"score": result.scores, "figure": result.scores.quoted, "totals": record["totals"], "device": device}


if __name__ == "__main__":
    raise SystemExit(main())
