r"""Convert downloaded benchmarks into LLaVA's layout and report what is missing.

    python -m llava.eval.prepare gqa eval.zip images.zip questions1.2.zip
    python -m llava.eval.prepare textvqa ~/.cache/huggingface/hub/datasets--lmms-lab--textvqa/snapshots/9c0699c
    python -m llava.eval.prepare all eval.zip
    python -m llava.eval.prepare pope                  (no source: only look)

A source is a zip archive, a folder or a file: LLaVA's eval.zip or the folder it was unpacked to, the authors' archives
and annotation files, MMBench's or MMStar's TSV, parquet snapshots of the hub's lmms-lab data sets (these need pyarrow).
Nothing is downloaded. What is there already is kept, so a call can be repeated and continues after an interruption.
The last line is one JSON object; the exit status is 1 while something is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.cli import OutputOptions, option, print_json, run_command
from llava.eval.benchmarks import BENCHMARKS, find_benchmarks
from llava.eval.metrics.scores import format_table
from llava.eval.prepare import State, prepare

_REAL = [name for name in BENCHMARKS if not name.endswith("_mini")]


@dataclass(kw_only=True)
class Options(OutputOptions):
    """Which benchmarks, from what, to where."""

    benchmark: str = option(positional=True, help="a benchmark's name, several with commas, or all")
    sources: list[Path] = option([], positional=True, many=True, help="downloaded files or folders; none: only check")
    out: Path = option(Path("playground/data/eval"), help="the data folder (default playground/data/eval)")
    overwrite: bool = option(False, help="replace existing question and reference files")


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
    return "\n".join(lines + [f"{state.benchmark.name}: {problem}" for state in states for problem in state.problems])


def work(options: Options) -> int:
    """Prepare, print the states, and return 1 while something is missing."""
    benchmarks = find_benchmarks(",".join(_REAL) if options.benchmark == "all" else options.benchmark)
    done = [prepare(benchmark, options.sources, options.out, options.overwrite) for benchmark in benchmarks]
    states = [state for state, _ in done]
    written, kept = (sum(getattr(layout, count) for _, layout in done) for count in ("written", "kept"))
    print(render(states))
    if options.sources and not written + kept:
        names = ", ".join(benchmark.name for benchmark in benchmarks)
        print(f"nothing that belongs to {names} was found in {', '.join(map(str, options.sources))}")
    print_json({"written": written, "kept": kept, "benchmarks": [state.to_dict() for state in states]}, options)
    return int(any(state.problems for state in states))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    epilog = f"benchmarks: {', '.join(_REAL)}"
    return run_command(Options, work, argv, prog="python -m llava.eval.prepare", description=__doc__, epilog=epilog)


if __name__ == "__main__":
    raise SystemExit(main())
