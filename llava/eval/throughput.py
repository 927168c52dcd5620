"""Compare the evaluation's time with a plain loop around transformers' `generate`, dense, on the same questions.

    python -m llava.eval.throughput --model-path playground/checkpoints/llava-tiny --benchmark textvqa_mini

The plain loop takes the questions in the order of their file, reads and preprocesses their images, and calls `generate`
on padded batches of the same size. The evaluation does everything that a run does, its files and scores included. Both
take turns, round after round, and the speed-up is the median over rounds of the loop's time / the evaluation's. The
model is loaded before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava.cli import ModelOptions, OutputOptions, number, option, print_json, run_command


@dataclass(kw_only=True)
class Options(ModelOptions, OutputOptions):
    """Options of the command: questions and rounds."""

    benchmark: str = option(help="source of the questions, e.g. textvqa or gqa_mini")
    data_dir: str = option("playground/data/eval", help="folder of the benchmarks (default playground/data/eval)")
    limit: int = option(64, help="number of questions, from the file's start (default 64)", type=number(int, 1))
    batch_size: int = option(8, help="questions per batch, of both (default 8)", type=number(int, 1))
    max_new_tokens: int = option(16, help="longest answer in tokens (default 16)", type=number(int, 1))
    rounds: int = option(5, help="rounds that count (default 5)", type=number(int, 1))
    workers: int | None = option(
        None, help="processes that prepare the evaluation's inputs (default: as in a run)", type=number(int, 0)
    )


def work(options: Options) -> None:
    """Time both, and print a table."""
    import statistics
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from llava.eval.benchmarks import find_benchmark
    from llava.eval.results.table import Column, Table
    from llava.eval.runner.evaluator import Evaluator
    from llava.eval.timing.plain_loop import measure

    options.require_dense("both loops ask the dense model")
    evaluator, benchmark = Evaluator(options, "llava.eval.throughput"), find_benchmark(options.benchmark)
    with TemporaryDirectory() as folder:
        answers = Path(folder) / "answers.jsonl"
        plan = evaluator.plan(benchmark, benchmark.at(options.data_dir), answers, None)
        result = measure(evaluator, plan, options.rounds)
    rate, median = Column("rate", "questions per second", ".2f"), Column("median", "seconds, median of rounds", ".3f")
    table = Table([Column("name", ""), rate, median])
    for name, label in (("loader", "this evaluation"), ("plain", "plain generate loop")):
        table.add(label, result["questions_per_second"][name], statistics.median(result["seconds"][name]))
    table.print()
    low, high = result["speedup_range"]
    print(f"evaluation {result['speedup']:.2f}× as fast (rounds {low:.2f} to {high:.2f}), {result['device']}")
    print(f"same answers: {result['same_answers']} of {result['questions']}")
    shares = ", ".join(f"{stage} {100 * part:.0f}%" for stage, part in result["time_shares"].items())
    print(f"the evaluation's time: {shares}")
    print_json(result, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog="python -m llava.eval.throughput", description=__doc__)


if __name__ == "__main__":
    raise SystemExit(main())
