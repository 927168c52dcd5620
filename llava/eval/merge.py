"""Merges the answer files of parallel chunks into one, in question order.

    python -m llava.eval.merge --questions questions.jsonl --output merge.jsonl 2_0.jsonl 2_1.jsonl

A question is known by its id and its text together: MME and TextVQA use one id for all questions of an image.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import ScoreError, field, match, parse_answer, read_jsonl
from llava.eval.metrics.command import run_cli
from llava.files import replacing


def _question_key(row: dict[str, Any], where: str) -> tuple[str, str]:
    return str(field(row, "question_id", where, (str, int))), field(row, "text", where)


def merge(
    questions: str | Path, chunks: Sequence[str | Path], output: str | Path, partial: bool = False
) -> dict[str, Any]:
    """Writes the answers of all `chunks` to `output`, one line a question, in the order of `questions`.

    Answer lines are carried over whole (metadata included). `output` appears complete or not at all.

    Args:
        questions: LLaVA's question JSONL ("question_id", "text").
        chunks: answer JSONL files ("question_id", "prompt", "text").
        output: the merged file.
        partial: leave unanswered questions out instead of raising; of several answers to a question keep the first.

    Returns:
        "output" and the counts of `Coverage.to_dict`.

    Raises:
        ScoreError: unreadable or malformed input; a question unanswered or answered twice, unless `partial`; an output
            that cannot be written.

    """
    expected = [_question_key(row, where) for where, row in read_jsonl(questions, "question file")]
    lines = [item for chunk in chunks for item in read_jsonl(chunk, "answers file")]
    given = []
    for where, row in lines:
        answer = parse_answer(row, where)
        if answer.prompt is None:
            raise ScoreError(f'{where}: key "prompt" is missing; the question is found through it')
        given.append(((answer.question_id, answer.prompt), where))
    used, coverage = match(expected, given, partial)
    waiting: dict[tuple[str, str], deque[int]] = defaultdict(deque)
    for index in used:
        waiting[given[index][0]].append(index)
    ordered = [lines[waiting[key].popleft()][1] for key in expected if waiting[key]]
    _write_lines(Path(output), ordered)
    return {"output": str(output)} | coverage.to_dict()


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    try:
        with replacing(path) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise ScoreError(f"{path} cannot be written: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Merge the answer files of parallel chunks, in question order.")
    parser.add_argument("chunks", nargs="+", help="answer JSONL files, one a chunk")
    parser.add_argument("--questions", required=True, help="the question JSONL that all chunks were cut from")
    parser.add_argument("--output", required=True, help="the merged answer JSONL")
    parser.add_argument("--partial", action="store_true", help="leave unanswered questions out, and say so")
    args = parser.parse_args(argv)
    return run_cli(lambda: merge(args.questions, args.chunks, args.output, args.partial))


if __name__ == "__main__":
    raise SystemExit(main())
