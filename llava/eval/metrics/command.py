"""The command line of a scorer or converter: what all of them take, and what they print."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import Coverage, ScoreError, write_json


def scorer_parser(description: str, answers: str = "--result-file") -> argparse.ArgumentParser:
    """Return a parser with the options of every scorer: the answers (an option of that name), --partial, --output."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(answers, required=True, help="answers JSONL of llava.eval.model_vqa_loader")
    parser.add_argument("--partial", action="store_true", help="score the answered questions only, and say so")
    parser.add_argument("--output", help="also write the scores to this JSON file")
    return parser


def run_cli(
    compute: Callable[[], dict[str, Any]],
    render: Callable[[dict[str, Any]], str] | None = None,
    output: str | Path | None = None,
) -> int:
    """Runs a command: prints `render(result)` and, as the last line, the result as one compact JSON object.

    A partial result and empty answers are announced above the table; `output` names a file that gets the result too.
    Returns the exit status: 0, or 1 after one line on stderr where `compute` raised ScoreError.
    """
    try:
        result = compute()
        if output is not None:
            write_json(output, result)
    except ScoreError as error:
        print("error: " + " ".join(str(error).split("\n")), file=sys.stderr)
        return 1
    if result.get("partial"):
        counts = Coverage(*(result[k] for k in ("questions", "answered", "missing", "duplicates", "unknown")))
        print(f"PARTIAL: {counts.describe()}; only the answered questions count.")
    if result.get("empty"):
        print(f"EMPTY: {result['empty']} of {result['answered']} answers hold no text; they are scored as they stand.")
    if render is not None:
        print(render(result))
    print(json.dumps(result, separators=(",", ":")))
    return 0
