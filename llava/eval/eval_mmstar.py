"""Scores MMStar answers given as option letters: overall, by its six core capabilities and its eighteen axes.

    python -m llava.eval.eval_mmstar --annotation-file mmstar_val.tsv --result-file answers.jsonl

Letters are read by MMStar's own rule (`llava.eval.metrics.option_letter.says_option`), and the overall figure is the
share of all questions answered rightly, as there. (lmms-eval reads letters otherwise and averages over axes.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llava.eval.metrics.answer_files import ScoreError, answers_by_id
from llava.eval.metrics.command import run_cli, scorer_parser
from llava.eval.metrics.option_letter import says_option
from llava.eval.metrics.option_tables import LETTERS, read_table
from llava.eval.metrics.scores import Scores, accuracy_of, group_accuracies, render_scores

_COLUMNS = ("index", "answer", "category", "l2_category")


def read_rows(path: str | Path) -> dict[str, dict[str, str]]:
    """The needed columns of MMStar's table, by index.

    Raises:
        ScoreError: as in `read_table`; an index that occurs twice, an answer that is no option letter.

    """
    rows: dict[str, dict[str, str]] = {}
    for where, row in read_table(path, _COLUMNS):
        if row["index"] in rows:
            raise ScoreError(f"{where}: index {row['index']!r} occurs twice")
        if row["answer"].strip() not in tuple(LETTERS):
            raise ScoreError(f"{where}: answer {row['answer']!r} should be one of {', '.join(LETTERS)}")
        rows[row["index"]] = {column: row[column] for column in _COLUMNS}
    return rows


def score(annotation_file: str | Path, result_file: str | Path, partial: bool = False) -> Scores:
    """MMStar's accuracies of an answers file.

    Args:
        annotation_file: TSV with "index", "answer", "category", "l2_category" (others are ignored).
        result_file: JSONL with "question_id" (the row's index) and "text".
        partial: score the answered questions only instead of raising when some are missing, duplicate or unknown.

    Returns:
        "accuracy"; the groups "capability" (six) and "axis" (eighteen).

    Raises:
        ScoreError: as in `read_rows`; answers that do not cover the questions, unless `partial`.

    """
    rows = read_rows(annotation_file)
    given, coverage, empty = answers_by_id(rows, result_file, partial)
    hits, capabilities, axes = [], [], []
    for index, answer in given.items():
        row = rows[index]
        hit = says_option(answer.text, row["answer"])
        hits.append(hit)
        capabilities.append(("capability", row["category"], hit))
        axes.append(("axis", f"{row['category']} / {row['l2_category']}", hit))
    values = {"accuracy": accuracy_of(hits)["accuracy"]}
    return Scores.of("mmstar", "accuracy", values, group_accuracies(capabilities + axes), coverage, empty)


def render(result: Scores) -> str:
    """The result of `score` as a table for people."""
    return render_scores(result, "MMStar")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = scorer_parser("Score MMStar answers (option letters).")
    parser.add_argument("--annotation-file", required=True, help="MMStar's table, as llava.eval.prepare writes it")
    args = parser.parse_args(argv)
    return run_cli(lambda: score(args.annotation_file, args.result_file, args.partial), render, args.output)


if __name__ == "__main__":
    raise SystemExit(main())
