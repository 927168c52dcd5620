"""The hub's data sets of short and free answers, as LLaVA's question, reference and image files.

Every function takes the rows of one data set (images as bytes or {"bytes", "path"}) and fills a benchmark's folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from llava.eval.benchmarks import gqa as gqa_files
from llava.eval.benchmarks import mme as mme_files
from llava.eval.benchmarks import mmvet as mmvet_files
from llava.eval.benchmarks import pope as pope_files
from llava.eval.benchmarks import textvqa as textvqa_files
from llava.eval.benchmarks import vizwiz as vizwiz_files
from llava.eval.benchmarks import vqav2 as vqav2_files
from llava.eval.eval_pope import SPLITS
from llava.eval.prepare.layout import Layout, PrepareError
from llava.eval.prepare.pictures import image_bytes, suffix_of
from llava.eval.runner import prompts

Row = dict[str, Any]
# Question ids are unique in LLaVA's POPE file: each split counts from its own base.
_POPE_BASE = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}


def _question(question_id: str | int, image: str, text: str, category: str = "default") -> Row:
    return {"question_id": question_id, "image": image, "text": text, "category": category}


def gqa_questions(rows: Iterable[Row], layout: Layout) -> None:
    """lmms-lab/GQA, testdev_balanced_instructions: the question file and GQA's own."""
    kept = ("imageId", "question", "answer", "fullAnswer", "isBalanced", "types")
    references = {}
    with layout.lines(gqa_files.QUESTIONS) as write:
        for row in rows:
            text = prompts.short_answer(row["question"])
            write(_question(str(row["id"]), f"{row['imageId']}.jpg", text))
            references[str(row["id"])] = {key: row[key] for key in kept if row.get(key) is not None}
    with layout.mapping(gqa_files.REFERENCES) as write_entry:
        for item in references.items():
            write_entry(item)


def gqa_images(rows: Iterable[Row], layout: Layout) -> None:
    """lmms-lab/GQA, testdev_balanced_images."""
    for row in rows:
        data = image_bytes(row["image"], f"image {row['id']}")
        layout.image(f"{gqa_files.IMAGES}/{row['id']}.jpg", data)


def mme(rows: Iterable[Row], layout: Layout) -> None:
    """lmms-lab/MME: the release's folders, and LLaVA's question file unless it is there."""
    pairs: dict[str, list[str]] = {}
    named = _named_images(layout, mme_files.QUESTIONS)
    with layout.lines(mme_files.QUESTIONS) as write:
        for row in rows:
            task, _, file = row["question_id"].rpartition("/")
            task = task.split("/")[0]
            data = image_bytes(row["image"], f"question {row['question_id']}")
            if "." not in file:
                file += suffix_of(data, row["question_id"])
            if not task or row["category"] != task:
                raise PrepareError(f"question_id {row['question_id']!r} should begin with its category and '/'")
            image = named.get((task, file), f"{task}/{file}")
            layout.image(f"{mme_files.RELEASE}/{image}", data)
            write(_question(image, image, prompts.mme(row["question"]), task))
            answer = row["answer"].strip().rstrip(".")
            pairs.setdefault(image, []).append(f"{row['question'].strip()}\t{answer}\n")
    for image, lines in pairs.items():
        references = image.replace("/images/", "/questions_answers_YN/").rsplit(".", 1)[0] + ".txt"
        with layout.text(f"{mme_files.RELEASE}/{references}") as text:
            if text is not None:
                text.writelines(lines)


def _named_images(layout: Layout, questions: str) -> dict[tuple[str, str], str]:
    """(task, file name) → path, of the images that a question file names which is there already."""
    named = {}
    for row in layout.rows(questions):
        parts = row["image"].split("/")
        named[parts[0], parts[-1]] = row["image"]
    return named


def textvqa(rows: Iterable[Row], layout: Layout) -> None:
    """lmms-lab/textvqa, validation: questions with their OCR tokens, references, images."""
    kept = ("question_id", "question", "image_id", "answers")
    with (
        layout.lines(textvqa_files.QUESTIONS) as write,
        layout.array(textvqa_files.REFERENCES, key="data") as write_reference,
    ):
        for row in rows:
            image = f"{row['image_id']}.jpg"
            layout.image(f"{textvqa_files.IMAGES}/{image}", image_bytes(row["image"], f"image {row['image_id']}"))
            write(_question(row["image_id"], image, prompts.textvqa(row["question"], row["ocr_tokens"] or [])))
            write_reference({key: row[key] for key in kept})


def pope(rows: Iterable[Row], layout: Layout) -> None:
    """lmms-lab/POPE: the newer release, 3000 questions a split; labels of each split, images."""
    counts = dict.fromkeys(SPLITS, 0)
    with layout.lines(pope_files.QUESTIONS) as write, ExitStack() as stack:
        labels = {s: stack.enter_context(layout.lines(f"{pope_files.LABELS}/coco_pope_{s}.json")) for s in SPLITS}
        for row in rows:
            split = row["category"]
            if split not in counts:
                raise PrepareError(f"category {split!r} of a row should be one of {', '.join(SPLITS)}")
            counts[split] += 1
            image = f"{row['image_source']}.jpg"
            layout.image(f"{pope_files.IMAGES}/{image}", image_bytes(row["image"], image))
            question = row["question"].strip()
            question_id = _POPE_BASE[split] + counts[split]
            write(_question(question_id, image, prompts.short_answer(question), split))
            label = row["answer"].strip().lower()
            labels[split]({"question_id": counts[split], "image": image, "text": question, "label": label})


def vqav2(rows: Iterable[Row], layout: Layout, split: str) -> None:
    """lmms-lab/VQAv2: `split` "validation" (with references), "testdev" or "test"."""
    questions, coco = {
        "validation": (vqav2_files.VAL, "val2014"),
        "testdev": (vqav2_files.TEST_DEV, "test2015"),
        "test": (vqav2_files.TEST, "test2015"),
    }[split]
    with layout.lines(questions) as write, ExitStack() as stack:
        write_reference = None
        if split == "validation":
            write_reference = stack.enter_context(layout.array(vqav2_files.VAL_REFERENCES, key="annotations"))
        kept = ("question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers")
        for row in rows:
            image = f"COCO_{coco}_{row['image_id']:012d}.jpg"
            layout.image(f"{coco}/{image}", image_bytes(row["image"], image))
            write(_question(row["question_id"], image, prompts.short_answer(row["question"])))
            if write_reference is not None:
                write_reference({key: row[key] for key in kept})


def vizwiz(rows: Iterable[Row], layout: Layout, split: str) -> None:
    """lmms-lab/VizWiz-VQA: `split` "val" (with references) or "test"."""
    questions, images = {"val": (vizwiz_files.VAL, "val"), "test": (vizwiz_files.TEST, "test")}[split]
    with layout.lines(questions) as write, ExitStack() as stack:
        write_reference = None
        if split == "val":
            write_reference = stack.enter_context(layout.array(vizwiz_files.VAL_REFERENCES))
        for number, row in enumerate(rows):
            image = f"{row['question_id'].removesuffix('.jpg')}.jpg"
            layout.image(f"{images}/{image}", image_bytes(row["image"], image))
            write(_question(number, image, prompts.vizwiz(row["question"])))
            if write_reference is not None:
                answers = [{"answer": answer} for answer in row["answers"]]
                write_reference(
                    {"image": image, "question": row["question"], "answers": answers, "answer_type": row["category"]}
                )


def mmvet(rows: Iterable[Row], layout: Layout) -> None:
    """lmms-lab/MMVet: the questions as they stand, images named as in MM-Vet's own archive."""
    with layout.lines(mmvet_files.QUESTIONS) as write:
        for row in rows:
            name = row["question_id"]
            if not name.startswith("v1_") or not name[3:].isdigit():
                raise PrepareError(f"question_id {name!r} should be v1_ and a number")
            data = image_bytes(row["image"], name)
            image = name + suffix_of(data, name)
            layout.image(f"{mmvet_files.IMAGES}/{image}", data)
            write(_question(int(name[3:]), image, row["question"], "conv"))
