"""A report over runs: a Markdown and a CSV table, and plots of accuracy, cost and decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llava.cli import OutputOptions, option, print_json, run_command
from llava.eval.results.plots import PlotOptions

EPILOG = """
RUNS are X.jsonl of llava.eval.run or model_vqa_loader (X.run.json must lie beside it), X.run.json, or folders: of a
folder every run anywhere inside it, chunks of one run put together. Runs inside a folder that cannot be read, or have
no answer yet, are left out and named.

example:
  bash scripts/quickstart.sh
  python -m llava.eval.report runs/quickstart --out runs/report

The folder gets report.md, report.csv and, for each model: MODEL-accuracy.png (accuracy against FLOPs, the Pareto front,
a panel per benchmark), MODEL-tokens.png (tokens that enter each layer, mean and band over prompts), MODEL-decisions.png
(histograms of filter layer, exit layer and visual tokens kept). All figures come from the traces in the answers;
milliseconds are those of each run on its own, for a speed-up see the paired times of llava.eval.run.

Exit status: 0, 1 after one line on stderr, 2 for a wrong command line.
"""


@dataclass(kw_only=True)
class Options(PlotOptions, OutputOptions):
    """What is reported, and where."""

    runs: list[str] = option(help="answers files, run files, or folders of them", positional=True, many=True)
    out: str = option(help="folder of the report; files of an earlier report are replaced", metavar="FOLDER")
    data_dir: str | None = option(None, help="folder of the benchmarks with their references (default: each run's own)")


def work(options: Options) -> None:
    """Read the runs, write the report, print its tables."""
    import sys
    from pathlib import Path

    from llava.eval.results.reporting import make_report, tables
    from llava.eval.runner.run import find_runs

    runs, broken = find_runs(options.runs)
    report = make_report(runs, Path(options.out).expanduser(), options.data_dir, options, broken, progress=True)
    for model, title, table, notes in tables(report["rows"], configs=False):
        print()
        table.print(f"{title}, {model}", notes)
    print("\n" + "\n".join(report["files"]))
    for line in report["left_out"]:
        print(f"left out: {line}", file=sys.stderr)
    print_json(report, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog="python -m llava.eval.report", description=__doc__, epilog=EPILOG)


if __name__ == "__main__":
    raise SystemExit(main())
