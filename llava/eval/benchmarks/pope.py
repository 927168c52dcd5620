"""POPE: yes or no, is an object in the image; three splits by how absent objects are chosen.

An answer is read by POPE's rule: of its first sentence, without commas, "no" where one of the words is "No", "no" or
"not", else "yes"; so an answer that says neither counts as "yes". "yes" is the positive class. Each figure is the mean
over the splits; the mean F1 is what LLaVA-1.5 and its followers quote as POPE (85.9 for LLaVA-1.5-7B).

Labels are found by image and question, within a split. LLaVA's question file has 2910 random questions and goes with
the annotations of POPE's commit e3e3926; today's coco_pope_random.json asks 3000 others and is refused with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llava.cli import UserError
from llava.eval.benchmarks.base import EVAL_ZIP, Benchmark, Conversion, Figures, Judged, References
from llava.eval.benchmarks.files import question_row
from llava.eval.benchmarks.prompts import SHORT, short_answer
from llava.eval.metrics.answer_files import field, read_jsonl

QUESTIONS = "llava_pope_test.jsonl"
IMAGES = "val2014"
LABELS = "coco"
SPLITS = ("adversarial", "popular", "random")
METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")
_NEGATIVE_WORDS = frozenset({"No", "no", "not"})
_RELEASES = "question file and annotations must be of one release (LLaVA's: POPE's commit e3e3926, 2910 random)"
_SITE = "https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
_HUB = "or the hub's lmms-lab/POPE"
# Question ids are unique in LLaVA's POPE file: each split counts from its own base.
_ID_BASE = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}

Label = tuple[str, bool]
"""(split, whether the right answer is yes)."""


def parse_yes_no(text: str) -> bool:
    """Whether POPE reads the answer as yes: "Yes." → True, "There is not" → False, "perhaps" → True."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return _NEGATIVE_WORDS.isdisjoint(words)


def judge(text: str, reference: Label) -> float:
    """1 where POPE's reading of the answer is the label, else 0."""
    return float(parse_yes_no(text) == reference[1])


def read(questions: Path, references: Path) -> References:
    """Question id → label, looked up in coco_pope_<split>.json of the folder `references`.

    Raises `UserError`: a file is missing or malformed, a question has no label, or a label no question (the files are
    of different releases), or an id or a question occurs twice.
    """
    labels: dict[str, Label] = {}
    open_labels: dict[str, dict[tuple[str, str], bool]] = {}
    for where, row in read_jsonl(questions, "question file"):
        split = field(row, "category", where)
        if split not in SPLITS:
            raise UserError(f'{where}: "category" should be one of {", ".join(SPLITS)}, found {split!r}')
        path = references / f"coco_pope_{split}.json"
        if split not in open_labels:
            open_labels[split] = _read_annotations(path)
        text = field(row, "text", where).removesuffix(f"\n{SHORT}")
        label = open_labels[split].pop(_question(field(row, "image", where), text), None)
        if label is None:
            raise UserError(f"{where}: {path} has no (or no second) {text!r} of {row['image']}; {_RELEASES}")
        question_id = str(field(row, "question_id", where, (str, int)))
        if question_id in labels:
            raise UserError(f"{where}: question_id {question_id} occurs twice")
        labels[question_id] = split, label
    for split, left in open_labels.items():
        if left:
            raise UserError(f"{len(left)} {split} labels have no question in {questions}; {_RELEASES}")
    return References(labels)


def _read_annotations(path: Path) -> dict[tuple[str, str], bool]:
    labels = {}
    for where, row in read_jsonl(path, "annotation file"):
        label = field(row, "label", where)
        if label not in ("yes", "no"):
            raise UserError(f'{where}: "label" should be yes or no, found {label!r}')
        labels[_question(field(row, "image", where), field(row, "text", where))] = label == "yes"
    return labels


def _question(image: str, text: str) -> tuple[str, str]:
    # POPE's first release, LLaVA's, spells "imange" in the questions with "an".
    return image, text.replace("imange", "image")


def aggregate(judged: Sequence[Judged], references: References) -> Figures:
    """`METRICS`, each the mean over the splits (all counting alike); the group "split" has those of each split."""
    by_split: dict[str, list[tuple[bool, bool]]] = {split: [] for split in SPLITS}
    for one in judged:
        split, label = one.reference
        by_split[split].append((label if one.value else not label, label))
    splits = {split: metrics(pairs) for split, pairs in by_split.items() if pairs}
    means = {name: sum(entry[name] for entry in splits.values()) / len(splits) for name in METRICS}
    return "f1", means, {"split": splits}


def metrics(judged: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    """`METRICS` in percent and "count" of (predicted yes, is yes) pairs; 0 where a ratio has no denominator."""

    def percent(part: float, whole: float) -> float:
        return 100 * part / whole if whole else 0.0

    true_yes = sum(predicted and actual for predicted, actual in judged)
    said_yes = sum(predicted for predicted, _ in judged)
    are_yes = sum(actual for _, actual in judged)
    right = sum(predicted == actual for predicted, actual in judged)
    return {
        "accuracy": percent(right, len(judged)),
        "precision": percent(true_yes, said_yes),
        "recall": percent(true_yes, are_yes),
        "f1": percent(2 * true_yes, said_yes + are_yes),  # = 2PR / (P + R)
        "yes_ratio": percent(said_yes, len(judged)),
        "count": len(judged),
    }


def _write(rows, layout):
    """lmms-lab/POPE: the newer release, 3000 questions per split."""
    counts = dict.fromkeys(SPLITS, 0)
    with layout.lines(QUESTIONS) as write, ExitStack() as stack:
        labels = {split: stack.enter_context(layout.lines(f"{LABELS}/coco_pope_{split}.json")) for split in SPLITS}
        for row in rows:
            split = row["category"]
            if split not in counts:
                raise UserError(f"category {split!r} of a row should be one of {', '.join(SPLITS)}")
            counts[split] += 1
            image = f"{row['image_source']}.jpg"
            layout.image(f"{IMAGES}/{image}", row["image"])
            question = row["question"].strip()
            write(question_row(_ID_BASE[split] + counts[split], image, short_answer(question), split))
            label = row["answer"].strip().lower()
            labels[split]({"question_id": counts[split], "image": image, "text": question, "label": label})


POPE = Benchmark(
    name="pope",
    title="POPE",
    folder="pope",
    questions=QUESTIONS,
    images=IMAGES,
    suffix=f"\n{SHORT}",
    questions_from=f"{EVAL_ZIP}, {_HUB}",
    images_from=f"http://images.cocodataset.org/zips/val2014.zip, {_HUB}",
    references_from=f"{_SITE}, {_HUB}",
    reference_files=tuple(f"{LABELS}/coco_pope_{split}.json" for split in SPLITS),
    counts=(8910, 9000),
    references=LABELS,
    read=read,
    judge=judge,
    aggregate=aggregate,
    figure="f1",
    labels={"all": "mean of splits", "f1": "F1"},
    conversions=(
        Conversion(
            "data/test-*.parquet Full/*.parquet *.parquet", "question answer image_source image category", _write
        ),
    ),
)
