r"""Bring downloaded benchmarks into the layout that the loader reads, and say what is missing.

    python -m llava.eval.prepare gqa eval.zip images.zip questions1.2.zip
    python -m llava.eval.prepare textvqa ~/.cache/huggingface/hub/datasets--lmms-lab--textvqa/snapshots/9c0699c
    python -m llava.eval.prepare all eval.zip
    python -m llava.eval.prepare pope                  (no source: only look)

A source is a zip archive, a folder or a file: LLaVA's eval.zip or the folder it was unpacked to, the authors' archives
and annotation files, MMBench's or MMStar's TSV, parquet snapshots of the hub's lmms-lab data sets (these need pyarrow).
Nothing is downloaded. What is there already is kept, so that a call can be repeated and goes on after an interruption.
The last line is one JSON object; the exit status is 1 while something is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llava.eval.benchmarks import BENCHMARKS, find_benchmarks
from llava.eval.metrics.answer_files import ScoreError, format_table
from llava.eval.prepare import PrepareError, State, prepare

_REAL = [name for name in BENCHMARKS if not name.endswith("_mini")]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"benchmarks: {', '.join(_REAL)}",
    )
    add = parser.add_argument
    add("benchmark", metavar="BENCH", help="a benchmark's name, several with commas, or all")
    add("sources", metavar="SOURCE", nargs="*", type=Path, help="what was downloaded; none: only look")
    add("--out", type=Path, default=Path("playground/data/eval"), help="the data folder (default %(default)s)")
    add("--overwrite", action="store_true", help="replace question and reference files that are there")
    return parser


def render(states: Sequence[State]) -> str:
    """The states as a table, and what is missing."""
    rows = [
        (
            state.benchmark.name,
            f"{state.questions:,}",
            f"{state.images - len(state.images_missing):,} of {state.images:,}",
            "no" if state.problems else "yes",
        )
        for state in states
    ]
    lines = [format_table(("benchmark", "questions", "images", "ready"), rows)]
    for state in states:
        lines += [f"{state.benchmark.name}: {problem}" for problem in state.problems]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        benchmarks = find_benchmarks(",".join(_REAL) if args.benchmark == "all" else args.benchmark)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    states, written, kept = [], 0, 0
    try:
        for benchmark in benchmarks:
            state, layout = prepare(benchmark, args.sources, args.out, args.overwrite)
            states.append(state)
            written, kept = written + layout.written, kept + layout.kept
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (PrepareError, ScoreError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(render(states))
    if args.sources and not written + kept:
        names = ", ".join(benchmark.name for benchmark in benchmarks)
        print(f"nothing that belongs to {names} was found in {', '.join(map(str, args.sources))}")
    summary = {"written": written, "kept": kept, "benchmarks": [state.to_dict() for state in states]}
    print(json.dumps(summary, separators=(",", ":")))
    return 0 if all(not state.problems for state in states) else 1


if __name__ == "__main__":
    raise SystemExit(main())
