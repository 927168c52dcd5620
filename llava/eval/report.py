"""A report over runs: a Markdown and a CSV table, and pictures of accuracy, cost and decisions (`--help` teaches)."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llava.eval.results.plots import Drawn, Panels, PlotOptions, accuracy_plot, histogram_plot, tokens_plot
from llava.eval.results.report_rows import Row, label_runs, make_row, note_unequal
from llava.eval.results.report_tables import csv_text, markdown_text, print_rows
from llava.eval.results.runs import EvalRun, RunError
from llava.eval.runner.run import find_runs

EPILOG = """
RUNS are X.jsonl of llava.eval.model_vqa_loader (X.run.json must lie beside it), X.run.json, or folders: of a folder
every run anywhere inside it, chunks of one run put together.

example:
  bash scripts/quickstart.sh
  python -m llava.eval.report runs/quickstart --out runs/report

FOLDER gets report.md, report.csv and, for each model: MODEL-accuracy.png (accuracy against FLOPs, the Pareto front, a
panel a benchmark), MODEL-tokens.png (tokens that enter each layer, mean and band over prompts), MODEL-decisions.png
(histograms of filter layer, exit layer and visual tokens kept). All figures come from the traces in the answers;
milliseconds are those of each run on its own, for a speed-up see llava.eval.suite.

The last line of the output is one JSON object. Exit status: 0, 1 after one line on stderr, 2 for a wrong command line.
"""


def make_report(
    runs: Sequence[EvalRun], out: Path, data_dir: str | Path | None = None, progress: bool = False
) -> dict[str, Any]:
    """Write the report of `runs` to the folder `out`.

    data_dir: folder of the benchmarks, where annotations are looked for; default: where each run found its questions
    Returns {"files": the files written, "rows": one dict a run}; runs without any answer are left out.
    Raises `RunError` if no run has an answer, or an answer has no trace.
    """
    labelled = label_runs([run for run in runs if run.answers])
    if not labelled:
        raise RunError(f"none of the {len(runs)} runs has an answer yet")
    rows, panels = [], {}
    for one in tqdm(labelled, unit="run", disable=not progress):
        row = make_row(one, data_dir)
        rows.append(row)
        title = f"{row['benchmark']} ({row['questions']} questions)"
        panels.setdefault(row["model"], {}).setdefault(title, []).append(_drawn(one.run, row))
    note_unequal(labelled, rows)
    out.mkdir(parents=True, exist_ok=True)
    pictures = {model: _draw(by_benchmark, out, model) for model, by_benchmark in panels.items()}
    (out / "report.md").write_text(markdown_text(rows, pictures), encoding="utf-8")
    (out / "report.csv").write_text(csv_text(rows), encoding="utf-8")
    files = ["report.md", "report.csv", *(file for files in pictures.values() for file in files)]
    return {"files": [str(out / file) for file in files], "rows": rows}


def _drawn(run: EvalRun, row: Row) -> Drawn:
    def column(key: str, otherwise: str | int) -> np.ndarray:
        found = ((trace, trace[key]) for trace in run.traces.values())
        return np.array([trace.get(otherwise, otherwise) if value is None else value for trace, value in found])

    return Drawn(
        name=row["run"],
        dense=row["dense"],
        flops_share=100 * (1 - row["flops_all_tokens_saved"]),
        accuracy=row["scores"].get("accuracy"),
        tokens=column("tokens_per_layer", -1),
        filter_layers=column("filter_layer", -1),
        exit_layers=column("exit_layer", -1),
        kept=column("kept_tokens", "visual_tokens"),
    )


def _draw(panels: Panels, out: Path, model: str) -> list[str]:
    """Draw the model's pictures; return the names of those that there was something to draw for."""
    slug = re.sub(r"[^\w.-]+", "-", model).strip("-")
    pictures = {"accuracy": accuracy_plot, "tokens": tokens_plot, "decisions": histogram_plot}
    files = {f"{slug}-{what}.png": draw for what, draw in pictures.items()}
    return [name for name, draw in files.items() if draw(panels, out / name, model, PlotOptions())]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.report",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="answers files, run files, or folders of them")
    add("--out", required=True, metavar="FOLDER", help="where the report goes; what it writes there is replaced")
    add("--data-dir", help="folder of the benchmarks with their annotations (default: where each run found its own)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        report = make_report(find_runs(args.runs)[0], Path(args.out), args.data_dir, progress=True)
    except (RunError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print_rows(report["rows"])
    print("\n" + "\n".join(report["files"]))
    print(json.dumps(report, separators=(",", ":")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
