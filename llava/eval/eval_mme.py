"""Scores MME answers: accuracy and accuracy+ by task, and the official perception and cognition sums.

    python -m llava.eval.eval_mme --questions llava_mme.jsonl --answers answers.jsonl
    python -m llava.eval.eval_mme --questions MME_Benchmark_release_version --answers answers.jsonl

The references are read from MME_Benchmark_release_version (beside llava_mme.jsonl unless --references names it): one
.txt an image with lines "question<TAB>Yes", in <task>/questions_answers_YN where <task>/images exists, else in <task>.
An answer counts as "yes" or "no" by the official rule: lower-cased, "yes" within the first four characters, else "no"
within them, else "other", which is always wrong. Of a task, acc is the share of questions answered rightly, acc+ the
share of images with both questions right, and the score 100 · (acc + acc+), so at most 200.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.metrics.answer_files import (
    ScoreError,
    count_empty,
    field,
    format_table,
    match,
    read_answers,
    read_jsonl,
)
from llava.eval.metrics.command import run_cli, scorer_parser
from llava.eval.metrics.scores import Scores
from llava.eval.runner.prompts import SHORT

TASKS = {
    "perception": (
        "existence",
        "count",
        "position",
        "color",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
        "OCR",
    ),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}
RELEASE_FOLDER = "MME_Benchmark_release_version"
_YES_OR_NO = "Please answer yes or no."

Key = tuple[str, str, str]
"""(task, name of the image's .txt file, question as the release has it)."""


def parse_yes_no(text: str) -> str:
    """The official reading of an answer as "yes", "no" or "other", e.g. "Yes, it is" → "yes", "not sure" → "no"."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def read_references(folder: str | Path) -> dict[Key, str]:
    """The release's questions and their answers ("yes" or "no"), by (task, .txt file, question).

    Raises:
        ScoreError: the folder is missing or holds no question; a line is not "question<TAB>Yes|No".

    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ScoreError(
            f"MME's references not found: {folder} is not a folder; "
            f"put {RELEASE_FOLDER} there or name it with --references"
        )
    references: dict[Key, str] = {}
    for task in sorted(path for path in folder.iterdir() if path.is_dir()):
        texts = task / "questions_answers_YN" if (task / "images").is_dir() else task
        for path in sorted(texts.glob("*.txt")):
            for number, line in enumerate(_lines(path), start=1):
                if not line.strip():
                    continue
                parts = line.strip().split("\t")
                if len(parts) != 2 or parts[1].lower() not in ("yes", "no"):
                    raise ScoreError(f'{path}:{number}: expected "question<TAB>Yes" or "…No", found {line.strip()!r}')
                references[task.name, path.name, parts[0]] = parts[1].lower()
    if not references:
        raise ScoreError(f"{folder} holds no MME question (no <task>/*.txt or <task>/questions_answers_YN/*.txt)")
    return references


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ScoreError(f"{path} cannot be read: {error}") from None


def reference_key(question_id: str, prompt: str, references: dict[Key, str]) -> Key:
    """The key of a question of llava_mme.jsonl, whose id is "<task>/<image file>"; it need not be in `references`.

    LLaVA's short-answer instruction is taken off. Where MME's own "Please answer yes or no." is missing, it is put back
    after one space, or two where the release has two.
    """
    task = question_id.split("/")[0]
    file = question_id.split("/")[-1].split(".")[0] + ".txt"
    question = prompt.replace(SHORT, "").strip() if SHORT in prompt else prompt
    if _YES_OR_NO in question:
        return task, file, question
    one_space = (task, file, f"{question} {_YES_OR_NO}")
    return one_space if one_space in references else (task, file, f"{question}  {_YES_OR_NO}")


def _expected(questions: Path, folder: str | Path | None) -> tuple[list[Key], dict[Key, str]]:
    if questions.is_dir():
        references = read_references(questions)
        return list(references), references
    rows = read_jsonl(questions, "questions file")
    references = read_references(folder or questions.parent / RELEASE_FOLDER)
    keys = []
    for where, row in rows:
        question_id = field(row, "question_id", where)
        key = reference_key(question_id, field(row, "text", where), references)
        if key not in references:
            raise ScoreError(f"{where}: {key[0]}/{key[1]} of the release does not have the question {key[2]!r}")
        keys.append(key)
    return keys, references


def _check_pairs(keys: Sequence[Key]) -> None:
    wrong = {image: count for image, count in Counter(key[:2] for key in keys).items() if count != 2}
    if wrong:
        (task, file), count = next(iter(wrong.items()))
        raise ScoreError(
            f"acc+ needs two questions an image, but {len(wrong)} images have another number; "
            f"the first is {task}/{file} with {count}"
        )


def _task_result(pairs: dict[str, list[tuple[str, str]]]) -> dict[str, Any]:
    """One task's result from image → [(prediction, reference)]; images with one answered question do not enter acc+."""
    judged = [item for items in pairs.values() for item in items]
    whole = [items for items in pairs.values() if len(items) == 2]
    right = sum(prediction == truth for prediction, truth in judged)
    both = sum(all(prediction == truth for prediction, truth in items) for items in whole)
    acc = 100 * right / len(judged)
    acc_plus = 100 * both / len(whole) if whole else 0.0
    return {
        "acc": acc,
        "acc_plus": acc_plus,
        "score": acc + acc_plus,
        "count": len(judged),
        "images": len(whole),
        "other": sum(prediction == "other" for prediction, _ in judged),
    }


def score(
    questions: str | Path, answers: str | Path, partial: bool = False, references: str | Path | None = None
) -> Scores:
    """MME's scores of an answers file.

    Args:
        questions: LLaVA's llava_mme.jsonl, or the release folder (then all its questions are expected).
        answers: JSONL with "question_id" ("<task>/<image file>"), "prompt" and "text".
        partial: score the answered questions only instead of raising when some are missing, duplicate or unknown.
        references: the release folder; default: beside `questions`.

    Returns:
        "perception", "cognition": sums of the official tasks that occur (None where none does); "absent": the official
        tasks that do not; "unofficial": tasks of no official list, in no sum; "total" of both sums; "accuracy" of all
        questions (percent); in the group "task", each task's {"acc", "acc_plus" (percent), "score" (of 200), "count" of
        questions, "images" with both questions answered, "other" answers}.

    Raises:
        ScoreError: unreadable or malformed input; an image without exactly two questions; answers that do not cover the
            questions, unless `partial`.

    """
    keys, truth = _expected(Path(questions), references)
    _check_pairs(keys)
    given, labels, lines = [], [], read_answers(answers)
    for answer in lines:
        if answer.prompt is None:
            raise ScoreError(f'{answer.where}: key "prompt" is missing; the question is found through it')
        given.append((reference_key(answer.question_id, answer.prompt, truth), answer.where))
        labels.append(parse_yes_no(answer.text))
    used, coverage = match(keys, given, partial)
    by_task: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for index in used:
        key = given[index][0]
        by_task[key[0]][key[1]].append((labels[index], truth[key]))
    official = [task for names in TASKS.values() for task in names]
    order = [task for task in official if task in by_task]
    unofficial = sorted(set(by_task) - set(official))
    tasks = {task: _task_result(by_task[task]) for task in order + unofficial}
    values: dict[str, Any] = {}
    for group, names in TASKS.items():
        present = [tasks[name]["score"] for name in names if name in tasks]
        values[group] = sum(present) if present else None
    values["total"] = sum(tasks[task]["score"] for task in order)
    hits = sum(
        prediction == right for images in by_task.values() for pair in images.values() for prediction, right in pair
    )
    values["accuracy"] = 100 * hits / len(used)
    values |= {"absent": [t for t in official if t not in tasks], "unofficial": unofficial}
    figure = "total" if values["perception"] is None else "perception"
    return Scores.of("mme", figure, values, {"task": tasks}, coverage, count_empty(lines[index] for index in used))


def render(result: Scores) -> str:
    """The result of `score` as a table for people; sums over some of the official tasks are labelled so."""
    columns = ("count", "acc", "acc_plus", "score", "other")
    tasks = result["groups"]["task"]
    rows: list[tuple] = [(task, *(entry[c] for c in columns)) for task, entry in tasks.items()]
    notes = []
    for group, names in TASKS.items():
        present = [name for name in names if name not in result["absent"]]
        if present:
            label = group if len(present) == len(names) else f"{group} ({len(present)} of {len(names)} tasks)"
            rows.append((label, sum(tasks[n]["count"] for n in present), "", "", result[group], ""))
        if len(present) < len(names):
            notes.append(f"absent {group} tasks: {', '.join(name for name in names if name in result['absent'])}")
    if result["unofficial"]:
        notes.append(f"in no official sum: {', '.join(result['unofficial'])}")
    return "\n".join([format_table(("MME", "questions", "acc", "acc+", "score", "other"), rows), *notes])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = scorer_parser("Score MME answers (acc, acc+, perception, cognition).", "--answers")
    parser.add_argument("--questions", required=True, help=f"llava_mme.jsonl, or the folder {RELEASE_FOLDER}")
    parser.add_argument("--references", help=f"the folder {RELEASE_FOLDER}; default: beside the questions file")
    args = parser.parse_args(argv)
    return run_cli(lambda: score(args.questions, args.answers, args.partial, args.references), render, args.output)


if __name__ == "__main__":
    raise SystemExit(main())
