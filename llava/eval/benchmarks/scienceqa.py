"""ScienceQA (test), the questions with an image: option letters, by LLaVA's reading.

The letter of an answer is the answer itself ("B"), its first character where ". " follows ("B. Vermont"), or X in the
one "The answer is X" that it holds; any other answer, and a letter beyond the question's options, is wrong and counted
as "unreadable". What the papers quote is the accuracy on the questions with an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.benchmarks.base import EVAL_ZIP, Benchmark, Conversion, Figures, Judged, References
from llava.eval.benchmarks.files import question_row
from llava.eval.benchmarks.prompts import LETTER, with_options
from llava.eval.metrics.answer_files import field, read_answers, read_json
from llava.eval.metrics.scores import accuracy_of, group_accuracies

LLAVA_QUESTIONS = "llava_test_CQM-A.json"
"""LLaVA's own file, with the questions without an image; a JSON list, not the loader's JSONL."""
QUESTIONS = "llava_test_CQM-A_img.jsonl"
IMAGES = "images/test"
PROBLEMS, SPLITS = "problems.json", "pid_splits.json"
LETTERS = "ABCDE"
_SENTENCE = re.compile(r"The answer is ([A-Z]).")  # one more character must follow, as in LLaVA's pattern
_SITE = "https://github.com/lupantech/ScienceQA (data/scienceqa)"
_HUB = "or the hub's lmms-lab/ScienceQA"


def parse_letter(text: str, choices: int) -> int | None:
    """The option that LLaVA reads in an answer, counted from 0; None where it reads none of the `choices` options."""
    if text in tuple(LETTERS) or (text[:1] in tuple(LETTERS) and text[1:3] == ". "):
        letter = text[0]
    else:
        found = _SENTENCE.findall(text)
        letter = found[0] if len(found) == 1 else ""
    index = LETTERS.find(letter) if letter else -1
    return index if 0 <= index < choices else None


def judge(text: str, reference: dict[str, Any]) -> float:
    """1 where the option read in the answer is the problem's, else 0."""
    return float(parse_letter(text, len(reference["choices"])) == reference["answer"])


def read_problems(base_dir: Path, split: str = "test", img_only: bool = False) -> References:
    """The problems of a split, by id; with `img_only` those that have an image were asked.

    Raises `UserError`: pid_splits.json or problems.json in `base_dir` is missing or malformed.
    """
    splits, problems = read_json(base_dir / SPLITS, "split file"), read_json(base_dir / PROBLEMS, "problems")
    if not isinstance(splits, dict) or not isinstance(splits.get(split), list) or not isinstance(problems, dict):
        raise UserError(f"{base_dir}: expected {SPLITS} with a list under {split!r} and {PROBLEMS} by id")
    chosen = {}
    for number in splits[split]:
        where = f"{base_dir / PROBLEMS}: problem {number}"
        problem = problems.get(str(number))
        if not isinstance(problem, dict):
            raise UserError(f"{where} of the split {split!r} is not there")
        choices, answer = field(problem, "choices", where, list), field(problem, "answer", where, int)
        if not 0 <= answer < len(choices) <= len(LETTERS):
            raise UserError(f"{where}: answer {answer} of {len(choices)} options (at most {len(LETTERS)})")
        chosen[str(number)] = problem
    return References(chosen, [key for key, one in chosen.items() if not img_only or one.get("image") is not None])


def read(questions: Path, references: Path) -> References:
    """The test problems; `references` is the folder of the two files, or problems.json in it."""
    return read_problems(references.parent if references.name == PROBLEMS else references, img_only=True)


def aggregate(judged: Sequence[Judged], references: References) -> Figures:
    """The "accuracy" of all, "img_accuracy" of questions with an image (None without one), "unreadable" answers."""
    with_image = [one.value for one in judged if one.reference.get("image") is not None]
    unreadable = sum(parse_letter(one.text, len(one.reference["choices"])) is None for one in judged)
    values = {
        "accuracy": accuracy_of([one.value for one in judged])["accuracy"],
        "img_accuracy": accuracy_of(with_image)["accuracy"] if with_image else None,
        "unreadable": unreadable,
    }
    found = group_accuracies((kind, name, one.value) for one in judged for kind, name in _groups(one.reference))
    return "img_accuracy" if with_image else "accuracy", values, found


def _groups(problem: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "context", "text only" if problem.get("image") is None else "image"
    if isinstance(problem.get("subject"), str):
        yield "subject", problem["subject"]
    grade = str(problem.get("grade", "")).removeprefix("grade")
    if grade.isdigit():
        yield "grades", "G1-6" if int(grade) <= 6 else "G7-12"


def llava_results(base_dir: Path, answers: Path, split: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """LLaVA's two files for the answered questions of a split: every answer with its reading, and a summary by id."""
    problems = read_problems(base_dir, split).of
    analyses: dict[str, list] = {"correct": [], "incorrect": []}
    indices, outputs = {}, {}
    for answer in read_answers(answers):
        if answer.question_id not in problems or answer.question_id in indices:
            continue
        problem = problems[answer.question_id]
        index = parse_letter(answer.text, len(problem["choices"]))
        indices[answer.question_id], outputs[answer.question_id] = -1 if index is None else index, answer.text
        analyses["correct" if index == problem["answer"] else "incorrect"].append(
            {
                "question_id": answer.question_id,
                "parsed_ans": "FAILED" if index is None else LETTERS[index],
                "ground_truth": LETTERS[problem["answer"]],
                "question": answer.prompt,
                "pred": answer.text,
                "is_multimodal": problem.get("image") is not None,
            }
        )
    correct, count = len(analyses["correct"]), len(indices)
    summary = {"acc": 100 * correct / count, "correct": correct, "count": count}
    return analyses, summary | {"results": indices, "outputs": outputs}


def prompt(question: str, choices: Sequence[str], hint: str) -> str:
    """The prompt in LLaVA's CQM-A form: context (if any), question, options, instruction."""
    context = f"Context: {hint.strip()}\n" if hint.strip() else ""
    return context + with_options(question, dict(zip(LETTERS, choices, strict=False)))


def _write(rows, layout):
    """lmms-lab/ScienceQA, ScienceQA-IMG, test: rows have no ids there, so they are numbered."""
    about = ("question", "choices", "answer", "hint", "task", "grade", "subject", "topic", "category", "skill")
    problems = {}
    with layout.lines(QUESTIONS) as write:
        for number, row in enumerate(rows):
            image = f"{number}/image.png"
            layout.image(f"{IMAGES}/{image}", row["image"])
            text = prompt(row["question"], row["choices"], row.get("hint") or "")
            write(question_row(str(number), image, text, row.get("subject", "")))
            problem = {key: row[key] for key in about if row.get(key) is not None}
            problems[str(number)] = problem | {"image": "image.png", "split": "test"}
    layout.json(PROBLEMS, problems)
    layout.json(SPLITS, {"test": list(problems)})


def _derive(layout):
    """The loader's question file from LLaVA's own (conversations), for the questions with an image."""
    with layout.lines(QUESTIONS) as write:
        for item in layout.read_json(LLAVA_QUESTIONS):
            if "image" in item:
                asked = item["conversations"][0]["value"].replace("<image>", "").strip()
                write(question_row(item["id"], item["image"], f"{asked}\n{LETTER}"))


SCIENCEQA = Benchmark(
    name="scienceqa",
    title="ScienceQA-IMG",
    folder="scienceqa",
    questions=QUESTIONS,
    images=IMAGES,
    suffix=f"\n{LETTER}",
    max_new_tokens=1024,
    questions_from=f"{EVAL_ZIP} (its {LLAVA_QUESTIONS}), {_HUB}",
    images_from=f"{_SITE}, {_HUB}",
    references_from=f"{_SITE}, {_HUB}",
    reference_files=(PROBLEMS, SPLITS),
    counts=(2017,),
    references=PROBLEMS,
    read=read,
    judge=judge,
    aggregate=aggregate,
    figure="img_accuracy",
    labels={"img_accuracy": "accuracy with an image", "unreadable": "answers without a readable option letter"},
    conversions=(
        Conversion(
            "ScienceQA-IMG/test-*.parquet test-*.parquet",
            "image question choices answer",
            _write,
            optional="hint task grade subject topic category skill",
        ),
    ),
    derived=(LLAVA_QUESTIONS, _derive),
)
