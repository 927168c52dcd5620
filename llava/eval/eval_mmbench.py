"""Scores MMBench answers given as option letters: one pass, and circular, overall and by ability.

    python -m llava.eval.eval_mmbench --annotation-file mmbench_dev_20230712.tsv --result-file answers.jsonl

The table asks every question again with its options rotated (index + 1,000,000 and so on). `accuracy` is over the
questions as they stand (single pass). `circular` counts a question only if all its rotations are answered rightly: this
is the figure that papers quote (64.3 for LLaVA-1.5-7B), and lies well below the single pass. Letters are read as in
MMBench's evaluation (`llava.eval.metrics.option_letter`), but where that would ask a language model the answer is wrong
here and counted as "unreadable".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import ScoreError, answers_by_id, format_table
from llava.eval.metrics.command import run_cli, scorer_parser
from llava.eval.metrics.option_letter import infer_option
from llava.eval.metrics.option_tables import choices_of, read_table
from llava.eval.metrics.scores import Groups, Scores, accuracy_of

ROTATION = 1_000_000
"""A rotated copy's index is its question's plus a multiple of this."""
_COLUMNS = ("index", "question", "A", "B", "answer")
_GROUPS = ("l2-category", "category")


def read_rows(path: str | Path) -> dict[str, dict[str, str]]:
    """The table's rows without their images, by index, column names in lower case but for the options.

    Raises:
        ScoreError: as in `read_table`; an index that is no number or occurs twice, an answer that is no option.

    """
    rows: dict[str, dict[str, str]] = {}
    for where, row in read_table(path, _COLUMNS):
        kept = {k if k in "ABCD" else k.lower(): v for k, v in row.items() if k != "image"}
        if not kept["index"].isdigit() or kept["index"] in rows:
            raise ScoreError(f"{where}: index {kept['index']!r} is no number, or occurs twice")
        if kept["answer"] not in choices_of(kept):
            raise ScoreError(f"{where}: answer {kept['answer']!r} is none of the options {', '.join(choices_of(kept))}")
        rows[kept["index"]] = kept
    return rows


def score(annotation_file: str | Path, result_file: str | Path, partial: bool = False) -> Scores:
    """MMBench's accuracies of an answers file.

    Args:
        annotation_file: MMBench's TSV with answers (a dev split).
        result_file: JSONL with "question_id" (the row's index) and "text", for every row.
        partial: score the answered rows only instead of raising when some are missing, duplicate or unknown.

    Returns:
        "accuracy" (single pass), "circular" (None where the table has no rotations), "unreadable" answers (of all
        rows); the groups "l2-category" and "category", each with "accuracy", "circular" and "count" of questions.

    Raises:
        ScoreError: as in `read_rows`; no answer to an unrotated question; answers that do not cover the rows, unless
            `partial`.

    """
    rows = read_rows(annotation_file)
    given, coverage, empty = answers_by_id(rows, result_file, partial)
    read = {i: infer_option(answer.text, choices_of(rows[i])) for i, answer in given.items()}
    passes: dict[int, list[str]] = defaultdict(list)
    for index in rows:
        passes[int(index) % ROTATION].append(index)
    single = {str(base): read[str(base)] == rows[str(base)]["answer"] for base in passes if str(base) in read}
    if not single:
        raise ScoreError(f"{result_file} has no answer to an unrotated question of {annotation_file}")
    circular = {}
    if len(passes) < len(rows):
        for base, indices in passes.items():
            if all(index in read for index in indices):
                circular[str(base)] = all(read[index] == rows[index]["answer"] for index in indices)
    values = {
        **_figures(single, circular),
        "unreadable": sum(letter is None for letter in read.values()),
    }
    del values["count"]
    figure = "accuracy" if values["circular"] is None else "circular"
    return Scores.of("mmbench", figure, values, _by_ability(rows, single, circular), coverage, empty)


def _figures(single: Mapping[str, bool], circular: Mapping[str, bool]) -> dict[str, Any]:
    figures = accuracy_of(list(single.values()))
    return figures | {"circular": accuracy_of(list(circular.values()))["accuracy"] if circular else None}


def _by_ability(rows: Mapping[str, Mapping[str, str]], single: dict[str, bool], circular: dict[str, bool]) -> Groups:
    groups: Groups = {}
    for kind in _GROUPS:
        names = sorted({rows[index][kind] for index in single if rows[index].get(kind)})
        for name in names:
            members = {index for index in single if rows[index].get(kind) == name}
            groups.setdefault(kind, {})[name] = _figures(
                {index: single[index] for index in members},
                {index: circular[index] for index in members if index in circular},
            )
    return groups


def render(result: Scores) -> str:
    """The result of `score` as a table for people."""

    def row(label: str, count: int, figures: Mapping[str, Any]) -> tuple:
        circular = figures["circular"]
        return label, count, figures["accuracy"], "-" if circular is None else circular

    kinds = result["groups"].values()
    questions = sum(entry["count"] for entry in next(iter(kinds), {}).values()) or result["answered"]
    rows = [row("all", questions, result)]
    for kind, names in result["groups"].items():
        rows += [row(f"{kind}: {name}", entry["count"], entry) for name, entry in names.items()]
    table = format_table(("MMBench", "questions", "single pass", "circular"), rows)
    return f"{table}\n{result['unreadable']} of {result['answered']} answers without a readable option letter"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = scorer_parser("Score MMBench answers (option letters; single pass and circular).")
    parser.add_argument("--annotation-file", required=True, help="MMBench's TSV, e.g. mmbench_dev_20230712.tsv")
    args = parser.parse_args(argv)
    return run_cli(lambda: score(args.annotation_file, args.result_file, args.partial), render, args.output)


if __name__ == "__main__":
    raise SystemExit(main())
