"""Score an answers file, or write the file that a benchmark's server takes.

    python -m llava.eval.score gqa --answers runs/gqa.jsonl
    python -m llava.eval.score textvqa --answers a.jsonl --references elsewhere/TextVQA_0.5.1_val.json
    python -m llava.eval.score vizwiz --answers a.jsonl --upload upload.json
    python -m llava.eval.score my/file.py:MY_BENCHMARK --answers a.jsonl

Prints a table and, as the last line, one JSON object with the same keys for every benchmark. A missing, doubled or
unknown answer is an error that names it; --partial scores the rest and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, make_dataclass
from pathlib import Path
from typing import Any

from llava.cli import OutputOptions, UserError, option, print_json, run_command
from llava.eval.benchmarks import Benchmark, find_benchmark
from llava.eval.metrics.answer_files import Coverage, write_json

ANSWERS = "answers JSONL of llava.eval.run or llava.eval.model_vqa_loader"
PARTIAL = "score the answered questions only, and say so"
_FLAGS = {
    "questions": "the question JSONL that was asked",
    "references": "the file (or folder) of right answers",
    "answers": ANSWERS,
}


@dataclass(kw_only=True)
class Options(OutputOptions):
    """Options of the command: benchmark, answers and references."""

    benchmark: str = option(positional=True, help="a benchmark's name, a folder named after one, or path/file.py:NAME")
    answers: Path = option(help=ANSWERS)
    data_dir: Path = option(
        Path("playground/data/eval"), help="folder of the benchmarks' folders (default playground/data/eval)"
    )
    questions: Path | None = option(None, help="another question file than the benchmark's")
    references: Path | None = option(None, help="other references than the benchmark's")
    partial: bool = option(False, help=PARTIAL)
    out: Path | None = option(None, help="also write the scores to this JSON file")
    upload: Path | None = option(None, help="write the file for the benchmark's server or grader instead of scoring")


def work(options: Options) -> None:
    """Score, or write the submission."""
    benchmark = find_benchmark(options.benchmark)
    folder = benchmark.at(options.data_dir)
    if options.upload is not None:
        if benchmark.submit is None:
            raise UserError(f"{benchmark.title} has no server; leave --upload out to score the answers here")
        report(benchmark.submit(folder, options.answers, options.upload), options)
        return
    references = options.references or benchmark.references_at(folder)
    questions = options.questions or folder / benchmark.questions
    if not folder.is_dir() and None in (options.questions, options.references):
        raise UserError(f"folder {folder} of {benchmark.title} not found{benchmark.hint}")
    scores = benchmark.score_files(questions, references, options.answers, options.partial)
    report(scores, options, benchmark, options.out)


def report(
    result: dict[str, Any], options: OutputOptions, benchmark: Benchmark | None = None, out: str | Path | None = None
) -> None:
    """Print a result: notes, the table of scores, and a JSON line (also written to `out`)."""
    if out is not None:
        write_json(out, result)
    if result.get("partial"):
        counts = Coverage(*(result[key] for key in ("questions", "answered", "missing", "duplicates", "unknown")))
        print(f"PARTIAL: {counts.describe()}; only the answered questions count.")
    if result.get("empty"):
        print(f"EMPTY: {result['empty']} of {result['answered']} answers hold no text; they are scored as they stand.")
    if benchmark is not None:
        print(benchmark.render(result))
    print_json(result, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog="python -m llava.eval.score", description=__doc__)


def command(
    name: str, work: Callable[[Any], None], description: str, **flags: str | tuple[Any, str]
) -> Callable[[Sequence[str] | None], int]:
    """A command under one of LLaVA's names: `flags` are its options, name → help, or (default, help)."""
    fields = []
    for flag, given in flags.items():
        default, text = given if isinstance(given, tuple) else (MISSING, given)
        kind = bool if default is False else str if default is MISSING else str | None
        fields.append((flag, kind, option(default, help=text)))
    options = make_dataclass("Options", fields, bases=(OutputOptions,), kw_only=True)

    def main(argv: Sequence[str] | None = None) -> int:
        return run_command(options, work, argv, prog=f"python -m llava.eval.{name}", description=description)

    return main


OUTPUTS = {"partial": (False, PARTIAL), "output": (None, "also write the scores to this JSON file")}


def scorer(name: str, benchmark: str, **flags: str) -> Callable[[Sequence[str] | None], int]:
    """LLaVA's scorer of a benchmark: `flags` says what its options mean (flag → questions, references or answers)."""

    def work(options: Any) -> None:
        files = {role: Path(getattr(options, flag)) for flag, role in flags.items()}
        scored = find_benchmark(benchmark)
        questions = files.get("questions", files["references"])
        scores = scored.score_files(questions, files["references"], files["answers"], options.partial)
        report(scores, options, scored, options.output)

    text = f"Score answers with files in any place; `python -m llava.eval.score {benchmark}` finds them by itself."
    return command(name, work, text, **{flag: _FLAGS[role] for flag, role in flags.items()}, **OUTPUTS)


if __name__ == "__main__":
    raise SystemExit(main())
