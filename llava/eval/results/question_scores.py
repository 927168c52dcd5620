"""The score of every single answer, by benchmark: what a paired comparison of two runs needs.

A benchmark's function takes (question file, annotations, answers) and returns {(question id, prompt): score in [0, 1]};
answers to questions that the annotations do not have, or that do not count, are left out. The rules are the scorers'
own: the mean of these scores is a scorer's "accuracy".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llava.eval import (
    eval_gqa,
    eval_mmbench,
    eval_mme,
    eval_mmstar,
    eval_pope,
    eval_science_qa,
    eval_textvqa,
    eval_vizwiz,
    eval_vqav2,
)
from llava.eval.benchmarks import mmbench as mmbench_files
from llava.eval.benchmarks import mmstar as mmstar_files
from llava.eval.benchmarks import pope as pope_files
from llava.eval.benchmarks import scienceqa as scienceqa_files
from llava.eval.benchmarks import vizwiz as vizwiz_files
from llava.eval.benchmarks import vqav2 as vqav2_files
from llava.eval.benchmarks.gqa import REFERENCES as GQA_REFERENCES
from llava.eval.benchmarks.textvqa import REFERENCES as TEXTVQA_REFERENCES
from llava.eval.metrics.answer_files import Answer, ScoreError
from llava.eval.metrics.option_letter import infer_option, says_option
from llava.eval.metrics.option_tables import choices_of
from llava.eval.metrics.text_normalize import normalize_answer

T = TypeVar("T")
QuestionScores = dict[tuple[str, str], float]


@dataclass(frozen=True)
class QuestionScorer:
    """How one benchmark's answers are judged; `annotations` is where they lie beside its question file."""

    annotations: str
    scores: Callable[[Path, Path, Iterable[Answer]], QuestionScores]


def _by_id(
    known: Mapping[str, T], answers: Iterable[Answer], judge: Callable[[str, T], bool | float]
) -> QuestionScores:
    """The scores `judge(text, known[question id])` of the answers to known questions."""
    return {
        (answer.question_id, answer.prompt): float(judge(answer.text, known[answer.question_id]))
        for answer in answers
        if answer.question_id in known
    }


def gqa(question_file: Path, annotations: Path, answers: Iterable[Answer]) -> QuestionScores:
    """1 where the answer is GQA's, else 0 (`eval_gqa`); questions that are not balanced do not count."""
    known = eval_gqa.read_questions(annotations)
    return _by_id(known, answers, lambda text, one: eval_gqa.normalize_prediction(text) == one["answer"])


def mme(question_file: Path, annotations: Path, answers: Iterable[Answer]) -> QuestionScores:
    """1 where MME's reading of the answer is the release's, else 0 (`eval_mme`); `annotations` is the release."""
    truth = eval_mme.read_references(annotations)
    keys = ((answer, eval_mme.reference_key(answer.question_id, answer.prompt, truth)) for answer in answers)
    return {
        (answer.question_id, answer.prompt): float(eval_mme.parse_yes_no(answer.text) == truth[key])
        for answer, key in keys
        if key in truth
    }


def textvqa(question_file: Path, annotations: Path, answers: Iterable[Answer]) -> QuestionScores:
    """M4C's soft accuracy of each answer (`eval_textvqa`)."""
    _, references, aliases = eval_textvqa.read_annotations(annotations)
    keys = ((answer, eval_textvqa.key_of(answer, references, aliases)) for answer in answers)
    return {
        (answer.question_id, answer.prompt): eval_textvqa.soft_accuracy(answer.text, references[key])
        for answer, key in keys
        if key in references
    }


def pope(question_file: Path, annotations: Path, answers: Iterable[Answer]) -> QuestionScores:
    """1 where POPE's reading of the answer is the label, else 0 (`eval_pope`); `annotations` is a folder."""
    labels = eval_pope.read_labels(question_file, annotations)
    return _by_id(labels, answers, lambda text, label: eval_pope.parse_yes_no(text) == label[1])


def scienceqa(question_file: Path, annotations: Path, answers: Iterable[Answer]) -> QuestionScores:
    """1 where the option read in the answer is the right one, else 0 (`eval_science_qa`, the test split)."""
    problems = eval_science_qa.read_problems(annotations.parent)
    return _by_id(
        problems,
        answers,
        lambda text, problem: eval_science_qa.parse_letter(text, len(problem["choices"])) == problem["answer"],
    )


def mmbench(question_file: Path, annotations: Path, answers: Iterable[Answer]) -> QuestionScores:
    """1 where the option read in the answer is the right one, else 0 (`eval_mmbench`); rotated copies do not count."""
    rows = eval_mmbench.read_rows(annotations)
    single = {index: row for index, row in rows.items() if int(index) < eval_mmbench.ROTATION}
    return _by_id(single, answers, lambda text, row: infer_option(text, choices_of(row)) == row["answer"])


def mmstar(question_file: Path, annotations: Path, answers: Iterable[Answer]) -> QuestionScores:
    """1 where the answer says the right option, else 0 (`eval_mmstar`)."""
    rows = eval_mmstar.read_rows(annotations)
    return _by_id(rows, answers, lambda text, row: says_option(text, row["answer"]))


def vqav2(question_file: Path, annotations: Path, answers: Iterable[Answer]) -> QuestionScores:
    """VQA's soft accuracy of each answer (`eval_vqav2`)."""
    known = eval_vqav2.read_annotations(annotations)
    return _by_id(known, answers, lambda text, one: eval_vqav2.vqa_accuracy(normalize_answer(text), one.answers))


def vizwiz(question_file: Path, annotations: Path, answers: Iterable[Answer]) -> QuestionScores:
    """VizWiz's soft accuracy of each answer (`eval_vizwiz`)."""
    by_image = eval_vizwiz.read_annotations(annotations)
    images = eval_vizwiz.read_images(question_file)
    known = {question: by_image[image] for question, image in images.items() if image in by_image}
    return _by_id(known, answers, lambda text, one: eval_vizwiz.soft_accuracy(text, one["answers"]))


SCORERS = {
    "gqa": QuestionScorer(GQA_REFERENCES, gqa),
    "mme": QuestionScorer(eval_mme.RELEASE_FOLDER, mme),
    "textvqa": QuestionScorer(TEXTVQA_REFERENCES, textvqa),
    "pope": QuestionScorer(pope_files.LABELS, pope),
    "scienceqa": QuestionScorer(scienceqa_files.PROBLEMS[0], scienceqa),
    "mmbench": QuestionScorer(mmbench_files.TABLE, mmbench),
    "mmstar": QuestionScorer(mmstar_files.TABLE, mmstar),
    "vqav2": QuestionScorer(vqav2_files.VAL_REFERENCES, vqav2),
    "vizwiz": QuestionScorer(vizwiz_files.VAL_REFERENCES, vizwiz),
}


def find_annotations(
    question_file: Path, kind: str | None = None, annotations: str | Path | None = None
) -> tuple[str, Path]:
    """The benchmark that a question file belongs to, and the annotations that its answers are judged by.

    The benchmark is told by the question file's folder, whose name begins with it (`gqa`, `gqa_mini`, `MME`), and the
    annotations lie where LLaVA's layout has them in that folder, unless `kind` and `annotations` say otherwise.

    Raises:
        ScoreError: an unknown benchmark, or no annotations there; says what to give.

    """
    folder = question_file.parent
    if kind is None:
        kind = next((known for known in SCORERS if folder.resolve().name.lower().startswith(known)), None)
    if kind not in SCORERS:
        what = f"benchmark {kind!r} is not known" if kind else f"{question_file} is in no known benchmark's folder"
        raise ScoreError(f"{what}; known: {', '.join(SCORERS)}")
    path = folder / SCORERS[kind].annotations if annotations is None else Path(annotations)
    if not path.exists():
        raise ScoreError(f"annotations of {kind} not found: {path}; name them with --annotations")
    return kind, path
