"""textvqa_mini: reading a sign and a handwritten digit, in the files of TextVQA's validation set, LLaVA's layout.

    textvqa_mini/llava_textvqa_val_v051_ocr.jsonl   questions for the model; question_id is the image id
    textvqa_mini/TextVQA_0.5.1_val.json             ten answers to each, matched by image id and lower-cased question
    textvqa_mini/train_images/<image id>.png

LLaVA's own question file gives the words found by an OCR tool in a "Reference OCR token" line. The small model was
never trained on such a line, and there is no OCR tool here, so it is left out; LLaVA's scorer accepts both shapes.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llava.tiny.files import start_over, write_json, write_jsonl, write_png
from llava.tiny.questions import TEXT_KINDS, ask, prompt_text
from llava.tiny.scenes import IMAGE_SIZE, render
from llava.tiny.seeds import picture_seeds
from llava.tiny.worlds import WORLD_OF

FOLDER = "textvqa_mini"
QUESTIONS = "llava_textvqa_val_v051_ocr.jsonl"
ANNOTATIONS = "TextVQA_0.5.1_val.json"
ANNOTATORS = 10


def write(root: Path, questions: int, seed: int, split: str) -> Iterator[int]:
    """Write the benchmark under `root`, exactly `questions` of them; yield the number so far after every picture.

    Every picture has a sign and a card; the ten annotators of a question agree.
    """
    folder = root / FOLDER
    start_over(folder, (QUESTIONS, ANNOTATIONS, "train_images"))
    rows, annotations = [], []
    for picture in picture_seeds(split, seed, benchmark=2):
        rng = np.random.default_rng(picture)
        pixels, scene = render(rng, sign_probability=1.0, card_probability=1.0, world=WORLD_OF[split])
        if scene.digit is None:
            continue
        image = f"{picture:016x}"
        write_png(folder / "train_images" / f"{image}.png", pixels)
        for question in [ask(kind, scene, rng) for kind in TEXT_KINDS][: questions - len(rows)]:
            annotations.append(
                {
                    "question_id": len(rows),
                    "question": question.text,
                    "image_id": image,
                    "image_width": IMAGE_SIZE,
                    "image_height": IMAGE_SIZE,
                    "image_classes": [],
                    "answers": [question.answer] * ANNOTATORS,
                    "set_name": "val",
                }
            )
            text = prompt_text(question)
            rows.append({"question_id": image, "image": f"{image}.png", "text": text, "category": "default"})
        yield len(rows)
        if len(rows) == questions:
            break
    header = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    write_json(folder / ANNOTATIONS, {**header, "data": annotations})
    write_jsonl(folder / QUESTIONS, rows)
