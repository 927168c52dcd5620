"""gqa_mini: open and yes/no questions about scenes, in the files of GQA's balanced test-dev set as LLaVA lays them out.

gqa_mini/llava_gqa_testdev_balanced.jsonl       questions for the model, one image's questions in a row
gqa_mini/data/testdev_balanced_questions.json   answers and types: {question id: {...}}
gqa_mini/data/images/*.png
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llava.tiny.files import start_over, write_json, write_jsonl, write_png
from llava.tiny.questions import GQA_KINDS, YES_NO_KINDS, Question, ask, prompt_text
from llava.tiny.scenes import Scene, render
from llava.tiny.seeds import picture_seeds
from llava.tiny.worlds import EVALUATION, WORLD_OF, World

FOLDER = "gqa_mini"
QUESTIONS = "llava_gqa_testdev_balanced.jsonl"
PER_IMAGE = 4
PER_KIND = 2
DRAWS = 100
# kind → GQA's structural and semantic type, and a detailed type (GQA's name where it has one; it does not count)
TYPES = {
    "attr_color": ("query", "attr", "attrColor"),
    "attr_shape": ("query", "attr", "attrShape"),
    "attr_size": ("choose", "attr", "chooseAttr"),
    "position": ("choose", "attr", "positionChoose"),
    "exist": ("verify", "obj", "existAttr"),
    "count": ("query", "obj", "count"),
    "verify_rel": ("verify", "rel", "relVerify"),
    "rel_color": ("query", "rel", "relColor"),
    "rel_shape": ("query", "rel", "relShape"),
}


def choose_questions(
    scene: Scene,
    rng: np.random.Generator,
    asked: Counter,
    yeses: Counter,
    world: World = EVALUATION,
    per_image: int = PER_IMAGE,
) -> Iterator[Question]:
    """Yield up to `per_image` different questions about a scene: kinds in turn, the rarest of the set so far first.

    Within a yes/no kind "yes" and "no" take turns over the set: `asked` and `yeses` count the questions, and those
    answered yes, by kind; both are updated. Relations are asked only where two objects fit the noun: they are needed.
    """
    here: Counter = Counter()
    seen: set[str] = set()
    possible = list(GQA_KINDS)
    while possible and len(seen) < per_image:
        kind = min(possible, key=lambda k: (here[k], asked[k]))
        wanted = 2 * yeses[kind] <= asked[kind] if kind in YES_NO_KINDS else None
        draws = (ask(kind, scene, rng, yes=wanted, lone=0.0, world=world) for _ in range(DRAWS))
        question = next((q for q in draws if q and q.text not in seen), None)
        if question is None or here[kind] == PER_KIND:
            possible.remove(kind)
            continue
        seen.add(question.text)
        here[kind] += 1
        asked[kind] += 1
        yeses[kind] += question.answer == "Yes"
        yield question


def _annotation(image: str, question: Question) -> dict:
    structural, semantic, detailed = TYPES[question.kind]
    return {
        "imageId": image,
        "question": question.text,
        "answer": question.answer.lower(),
        "isBalanced": True,
        "types": {"structural": structural, "semantic": semantic, "detailed": detailed},
        "groups": {"global": None, "local": None},
        "semantic": [],
        "entailed": [],
        "equivalent": [],
    }


def write(root: Path, questions: int, seed: int, split: str, per_image: int = PER_IMAGE) -> Iterator[int]:
    """Write the benchmark under `root`, exactly `questions` of them; yield the number so far after every picture."""
    folder, world = root / FOLDER, WORLD_OF[split]
    start_over(folder, (QUESTIONS, "data"))
    asked, yeses = Counter(), Counter()
    rows, annotations = [], {}
    for i, picture in enumerate(picture_seeds(split, seed, benchmark=0)):
        rng = np.random.default_rng(picture)
        pixels, scene = render(rng, world=world)
        image = f"n{i:06d}"
        write_png(folder / "data" / "images" / f"{image}.png", pixels)
        for question in choose_questions(scene, rng, asked, yeses, world, per_image):
            question_id = f"{len(rows):08d}"
            annotations[question_id] = _annotation(image, question)
            text = prompt_text(question)
            rows.append({"question_id": question_id, "image": f"{image}.png", "text": text, "category": "default"})
            if len(rows) == questions:
                break
        yield len(rows)
        if len(rows) == questions:
            break
    write_json(folder / "data" / "testdev_balanced_questions.json", annotations)
    write_jsonl(folder / QUESTIONS, rows)
