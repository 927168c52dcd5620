"""MME: yes or no on pairs of questions about one image, 14 tasks.

The references are the release's .txt files, one per image with lines "question<TAB>Yes", in
<task>/questions_answers_YN where <task>/images exists, else in <task>. An answer is "yes" or "no" by the official rule:
lower-cased, "yes" within the first four characters, else "no" within them, else "other", which is always wrong. Of a
task, acc is the share of questions answered rightly, acc+ the share of images with both questions right, and the score
100 · (acc + acc+), so at most 200; perception and cognition are sums over tasks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.benchmarks.base import EVAL_ZIP, Benchmark, Conversion, Figures, Judged, Key, References, Term
from llava.eval.benchmarks.files import question_row
from llava.eval.benchmarks.prompts import SHORT, short_answer
from llava.eval.metrics.answer_files import Answer, field, read_jsonl

QUESTIONS = "llava_mme.jsonl"
RELEASE = "MME_Benchmark_release_version"
PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = {"perception": PERCEPTION, "cognition": COGNITION}
_OFFICIAL = PERCEPTION + COGNITION
_YES_OR_NO = "Please answer yes or no."
_SITE = "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation"
_HUB = "or the hub's lmms-lab/MME"

Line = tuple[str, str, str]
"""(task, name of the image's .txt file, question as the release has it)."""


def parse_yes_no(text: str) -> str:
    """The official reading of an answer as "yes", "no" or "other", e.g. "Yes, it is" → "yes", "not sure" → "no"."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def judge(text: str, reference: str) -> float:
    """1 where the official reading of the answer is the reference ("yes" or "no"), else 0."""
    return float(parse_yes_no(text) == reference)


def read(questions: Path, references: Path) -> References:
    """The release's answers to the questions of llava_mme.jsonl, or of the release itself if `questions` is a folder.

    Raises `UserError`: unreadable or malformed files; a question that the release does not have; an image without
    exactly two questions, which acc+ needs.
    """
    if questions.is_dir():
        truth = read_release(questions)
        lines = list(truth)
    else:
        rows, truth, lines = read_jsonl(questions, "questions file"), read_release(references), []
        for where, row in rows:
            line = find_line(field(row, "question_id", where), field(row, "text", where), truth)
            if line not in truth:
                raise UserError(f"{where}: {line[0]}/{line[1]} of the release does not have the question {line[2]!r}")
            lines.append(line)
    wrong = {image: count for image, count in Counter(line[:2] for line in lines).items() if count != 2}
    if wrong:
        (task, file), count = next(iter(wrong.items()))
        raise UserError(
            f"acc+ needs two questions per image, but {len(wrong)} images have another number; "
            f"the first is {task}/{file} with {count}"
        )

    def line_of(answer: Answer) -> Line:
        return find_line(answer.question_id, answer.asked, truth)

    return References(truth, lines, line_of)


def read_release(folder: Path) -> dict[Line, str]:
    """The release's questions and their answers ("yes" or "no").

    Raises `UserError`: the folder is missing or holds no question; a line is not "question<TAB>Yes|No".
    """
    if not folder.is_dir():
        raise UserError(
            f"MME's references not found: {folder} is not a folder; put {RELEASE} there or name it with --references"
        )
    truth: dict[Line, str] = {}
    for task in sorted(path for path in folder.iterdir() if path.is_dir()):
        texts = task / "questions_answers_YN" if (task / "images").is_dir() else task
        for path in sorted(texts.glob("*.txt")):
            try:
                lines = path.read_text(encoding="utf-8").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{path} cannot be read: {error}") from None
            for number, line in enumerate(lines, start=1):
                parts = line.strip().split("\t")
                if parts == [""]:
                    continue
                if len(parts) != 2 or parts[1].lower() not in ("yes", "no"):
                    raise UserError(f'{path}:{number}: expected "question<TAB>Yes" or "…No", found {line.strip()!r}')
                truth[task.name, path.name, parts[0]] = parts[1].lower()
    if not truth:
        raise UserError(f"{folder} holds no MME question (no <task>/*.txt or <task>/questions_answers_YN/*.txt)")
    return truth


def find_line(question_id: str, prompt: str, truth: Mapping[Line, str]) -> Line:
    """The release's line of a question of llava_mme.jsonl, whose id is "<task>/<image file>"; may not be in `truth`.

    LLaVA's short-answer instruction is taken off. Where MME's own "Please answer yes or no." is missing, it is put back
    after one space, or two where the release has two.
    """
    parts = question_id.split("/")
    task, file = parts[0], parts[-1].split(".")[0] + ".txt"
    question = prompt.replace(SHORT, "").strip() if SHORT in prompt else prompt
    if _YES_OR_NO in question:
        return task, file, question
    one_space = (task, file, f"{question} {_YES_OR_NO}")
    return one_space if one_space in truth else (task, file, f"{question}  {_YES_OR_NO}")


def aggregate(judged: Sequence[Judged], references: References) -> Figures:
    """MME's figures.

    "perception", "cognition": sums over the official tasks that occur (None where none does), "total" of both; "absent"
    official tasks; "unofficial" tasks, in no sum; "accuracy" of all questions. The group "task" has each task's "acc",
    "acc_plus" (percent), "score" (of 200), "count", "images" with both questions answered, "other" answers.
    """
    by_task: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        by_task[one.key[0]].append(one)
    official = [task for task in _OFFICIAL if task in by_task]
    unofficial = sorted(set(by_task) - set(_OFFICIAL))
    tasks = {task: _task_figures(by_task[task]) for task in official + unofficial}
    values: dict[str, Any] = {}
    for group, names in TASKS.items():
        present = [tasks[name]["score"] for name in names if name in tasks]
        values[group] = sum(present) if present else None
    values["total"] = sum(tasks[task]["score"] for task in official)
    values["accuracy"] = 100 * sum(one.value for one in judged) / len(judged)
    values |= {"absent": [task for task in _OFFICIAL if task not in tasks], "unofficial": unofficial}
    return "total" if values["perception"] is None else "perception", values, {"task": tasks}


def _task_figures(judged: Sequence[Judged]) -> dict[str, Any]:
    images: dict[str, list[float]] = defaultdict(list)
    for one in judged:
        images[one.key[1]].append(one.value)
    whole = [values for values in images.values() if len(values) == 2]  # one answer of two does not enter acc+
    acc = 100 * sum(one.value for one in judged) / len(judged)
    acc_plus = 100 * sum(map(all, whole)) / len(whole) if whole else 0.0
    other = sum(parse_yes_no(one.text) == "other" for one in judged)
    counts = {"count": len(judged), "images": len(whole), "other": other}
    return {"acc": acc, "acc_plus": acc_plus, "score": acc + acc_plus, **counts}


def task_of(key: Key) -> str:
    """The task that a question belongs to."""
    return key[0].split("/")[0]


def quoted(scores: Mapping[Key, float]) -> dict[str, list[Term]]:
    """Perception, cognition and total, where they have a task: two terms per task, acc and acc+."""
    tasks: dict[str, tuple[Term, Term]] = defaultdict(lambda: ({}, {}))
    images: dict[str, list[Key]] = defaultdict(list)
    for key, score in scores.items():
        tasks[task_of(key)][0][key] = (score, 1.0)
        images[key[0]].append(key)
    for keys in images.values():
        if len(keys) == 2:
            both = float(all(scores[key] == 1 for key in keys))
            tasks[task_of(keys[0])][1][keys[0]] = (both, 1.0)
    terms = {group: [term for name in names if name in tasks for term in tasks[name]] for group, names in TASKS.items()}
    terms["total"] = [*terms["perception"], *terms["cognition"]]
    return {name: some for name, some in terms.items() if some}


def prompt(question: str) -> str:
    """The prompt: the short-answer instruction replaces "Please answer yes or no." (MME's own)."""
    return short_answer(question.replace(_YES_OR_NO, "").strip())


def _write(rows, layout):
    """lmms-lab/MME: the release's folders, and LLaVA's question file unless it is there."""
    pairs: dict[str, list[str]] = {}
    paths = (row["image"] for row in layout.rows(QUESTIONS))
    named = {(path.split("/")[0], path.split("/")[-1]): path for path in paths}  # LLaVA's paths, where it names them
    with layout.lines(QUESTIONS) as write:
        for row in rows:
            task, _, file = row["question_id"].rpartition("/")
            task = task.split("/")[0]
            if not task or row["category"] != task:
                raise UserError(f"question_id {row['question_id']!r} should begin with its category and '/'")
            file = file if "." in file else layout.image_name(file, row["image"])
            image = named.get((task, file), f"{task}/{file}")
            layout.image(f"{RELEASE}/{image}", row["image"])
            write(question_row(image, image, prompt(row["question"]), task))
            answer = row["answer"].strip().rstrip(".")
            pairs.setdefault(image, []).append(f"{row['question'].strip()}\t{answer}\n")
    for image, lines in pairs.items():
        references = image.replace("/images/", "/questions_answers_YN/").rsplit(".", 1)[0] + ".txt"
        layout.text(f"{RELEASE}/{references}", "".join(lines))


def _release_file(name: str) -> str | None:
    """Where a .txt file of an archive belongs: below the release, from its task's folder on."""
    parts = name.split("/")
    tasks = [place for place, part in enumerate(parts[:-1]) if part in _OFFICIAL]
    return f"{RELEASE}/{'/'.join(parts[tasks[-1] :])}" if name.endswith(".txt") and tasks else None


MME = Benchmark(
    name="mme",
    title="MME",
    folder="MME",
    questions=QUESTIONS,
    images=RELEASE,
    suffix=f"\n{SHORT}",
    # The release folder holds the images and, beside them, the references.
    reference_files=(),
    questions_from=f"{EVAL_ZIP}, {_HUB}",
    images_from=f"MME's authors, {_SITE}, {_HUB}",
    counts=(2374,),
    references=RELEASE,
    read=read,
    judge=judge,
    aggregate=aggregate,
    quoted=quoted,
    stratum=task_of,
    figure="perception",
    unit="of 2000",
    labels={"acc_plus": "acc+", "absent": "absent tasks (not in the sums)", "unofficial": "in no official sum"},
    conversions=(Conversion("data/test-*.parquet *.parquet", "question_id image question answer category", _write),),
    extra_file=_release_file,
)
