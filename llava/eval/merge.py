"""Merge the answers files of parallel chunks into one, in question order.

    python -m llava.eval.merge --questions questions.jsonl --output merge.jsonl 2_0.jsonl 2_1.jsonl

A question is known by its id and its text together: MME and TextVQA use one id for all questions of an image.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.cli import OutputOptions, UserError, option, run_command
from llava.eval.metrics.answer_files import field, match, parse_answer, read_jsonl
from llava.eval.score import report
from llava.files import replacing


@dataclass(kw_only=True)
class Options(OutputOptions):
    """Which files become which."""

    chunks: list[Path] = option(positional=True, many=True, help="answers JSONL files, one per chunk")
    questions: Path = option(help="the question JSONL that all chunks were cut from")
    output: Path = option(help="the merged answers JSONL")
    partial: bool = option(False, help="leave unanswered questions out, and say so")


def merge(
    questions: str | Path, chunks: Sequence[str | Path], output: str | Path, partial: bool = False
) -> dict[str, Any]:
    """Write the answers of all `chunks` to `output`, one line per question, in the order of `questions`.

    Answer lines are carried over whole (metadata included). `output` appears complete or not at all.

    Args:
        questions: LLaVA's question JSONL ("question_id", "text").
        chunks: answers JSONL files ("question_id", "prompt", "text").
        output: the merged file.
        partial: leave unanswered questions out instead of raising; of several answers to a question keep the first.

    Returns:
        "output" and the counts of `Coverage.to_dict`.

    Raises:
        UserError: unreadable or malformed input; a question unanswered or answered twice, unless `partial`; an output
            that cannot be written.

    """
    rows = read_jsonl(questions, "question file")
    expected = [(str(field(row, "question_id", where, (str, int))), field(row, "text", where)) for where, row in rows]
    lines = [item for chunk in chunks for item in read_jsonl(chunk, "answers file")]
    answers = [parse_answer(row, where) for where, row in lines]
    given = [((answer.question_id, answer.asked), answer.where) for answer in answers]
    used, coverage = match(expected, given, partial)
    waiting: dict[tuple[str, str], deque[int]] = defaultdict(deque)
    for index in used:
        waiting[given[index][0]].append(index)
    ordered = [lines[waiting[key].popleft()][1] for key in expected if waiting[key]]
    try:
        with replacing(Path(output)) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in ordered)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error}") from None
    return {"output": str(output)} | coverage.to_dict()


def work(options: Options) -> None:
    """Merge, and print the counts."""
    report(merge(options.questions, options.chunks, options.output, options.partial), options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog="python -m llava.eval.merge", description=__doc__)


if __name__ == "__main__":
    raise SystemExit(main())
