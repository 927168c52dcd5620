"""mme_mini: pairs of yes/no questions, in the files of MME's release as LLaVA lays them out.

    mme_mini/llava_mme.jsonl                                        questions for the model
    mme_mini/MME_Benchmark_release_version/<category>/000001.png    one picture a pair
    mme_mini/MME_Benchmark_release_version/<category>/000001.txt    the pair: "question<TAB>Yes", "question<TAB>No"

The categories are five of MME's perception tasks, under their official names; the release keeps these flat, pictures
and texts side by side (other tasks of the release have `images/` and `questions_answers_YN/` folders). As in LLaVA's
own file the question given to the model leaves out "Please answer yes or no." and ends with the short-answer line; the
texts keep the former.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llava.tiny.files import start_over, write_jsonl, write_png
from llava.tiny.questions import Question, ask, prompt_text
from llava.tiny.scenes import Scene, render
from llava.tiny.seeds import picture_seeds
from llava.tiny.worlds import EVALUATION, WORLD_OF, World

FOLDER = "mme_mini"
QUESTIONS = "llava_mme.jsonl"
IMAGES = "MME_Benchmark_release_version"
CATEGORIES = {
    "existence": "mme_exist",
    "count": "mme_count",
    "position": "mme_pos",
    "color": "mme_color",
    "OCR": "mme_text",
}
DRAWS = 60


def choose_pair(
    kind: str, scene: Scene, rng: np.random.Generator, world: World = EVALUATION
) -> tuple[Question, Question] | None:
    """Draw one question answered yes and one answered no, or None where the scene has no such pair."""
    pair = []
    for yes in (True, False):
        draws = (ask(kind, scene, rng, yes=yes, world=world) for _ in range(DRAWS))
        pair.append(next((q for q in draws if q), None))
    return None if None in pair else tuple(pair)


def write(root: Path, questions: int, seed: int, split: str) -> Iterator[int]:
    """Write the benchmark under `root`; yield the number of questions written so far after every pair.

    Every category gets the same number of pairs, so `questions` is rounded up to a multiple of ten.
    """
    folder, world = root / FOLDER, WORLD_OF[split]
    start_over(folder, (QUESTIONS, IMAGES))
    pictures = iter(picture_seeds(split, seed, benchmark=1))
    pairs = -(-questions // (2 * len(CATEGORIES)))
    rows = []
    for category, kind in CATEGORIES.items():
        done = 0
        while done < pairs:
            rng = np.random.default_rng(next(pictures))
            signs = 1.0 if category == "OCR" else 0.6
            pixels, scene = render(rng, sign_probability=signs, world=world)
            pair = choose_pair(kind, scene, rng, world)
            if pair is None:
                continue
            done += 1
            image = f"{category}/{done:06d}.png"
            write_png(folder / IMAGES / image, pixels)
            lines = "".join(f"{q.text}\t{q.answer}\n" for q in pair)
            (folder / IMAGES / image).with_suffix(".txt").write_text(lines, encoding="utf-8")
            for question in pair:
                text = prompt_text(question)
                rows.append({"question_id": image, "image": image, "text": text, "category": category})
            yield len(rows)
    write_jsonl(folder / QUESTIONS, rows)
