"""`llava.eval.run` under its old name, for benchmarks × configs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava.cli import number, option, part_of, run_command
from llava.eval import run


@dataclass(kw_only=True)
class Options(run.Options):
    """What is asked."""

    benchmark: list[str] = option(help="names, e.g. gqa_mini mme", aliases=("--benchmarks",), many=True)
    out: str = option("runs/suite", help="folder for answers, summary.json and summary.png (default runs/suite)")
    max_new_tokens: int = option(16, help="longest answer in tokens (default 16)", type=number(int, 1))


def work(options: Options) -> int:
    """Run the command; returns the exit status."""
    return run.work(part_of(run.Options, replace(options, benchmark=",".join(options.benchmark))), side_by_side=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog="python -m llava.eval.suite", description=run.__doc__)


if __name__ == "__main__":
    raise SystemExit(main())
