"""Write training scenes as data of `llava.train.train`: pictures, captions.json, questions.json.

    python -m llava.train.tiny.files --out runs/scenes [--pictures 16000] [--questions 12]

What the mini benchmarks and `llava.tiny.accuracy` ask never occurs in them (`llava.tiny.worlds`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from llava.cli import number, option, run_command
from llava.files import write_json
from llava.tiny.scenes import render
from llava.tiny.worlds import TRAINING
from llava.train.tiny.conversations import STYLES, Turn, as_turn, captions, draw_questions

SIGNS, CARDS = 0.75, 0.5
SHORT = 0.4
"""Share of the questions with LLaVA's short-answer line, as the evaluation asks them all: 11 tokens of about 27."""
DESCRIBED = 3
"""In questions.json one picture in so many is described from four sides: every word of a caption is an answer."""
KINDS = (*STYLES["hard"].kinds, "on_sign")
OFTEN = {kind: 1.2 for kind in ("attr_color", "attr_shape", "attr_size", "exist", "on_sign", "part_text")}
OFTEN |= {kind: 2.0 for kind in ("verify_rel", "rel_color", "rel_shape", "mme_pos", "mme_text", "count_most")}
OFTEN |= {"choose_rel": 3.0, "text": 3.0, "position": 1.5, "hw_digit": 1.5}
_SEED = 20


@dataclass(kw_only=True)
class Options:
    """Where to write, and how much."""

    out: Path = option(help="folder to write")
    pictures: int = option(16000, help="pictures (default 16000)", type=number(int, 1))
    questions: int = option(
        12, help="questions about each, turns of one conversation (default 12)", type=number(int, 1)
    )
    seed: int = option(0, help="of pictures and questions (default 0)", type=number(int, 0))


def conversation(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Write turns in LLaVA's format, the image with the first."""
    said = []
    for position, turn in enumerate(turns):
        said.append({"from": "human", "value": "<image>\n" * (not position) + turn.text})
        said.append({"from": "gpt", "value": turn.answer})
    return said


def work(options: Options) -> None:
    """Draw the pictures; write captions.json, about each, and questions.json, with captions among them."""
    described, asked = [], []
    for index in tqdm(range(options.pictures), desc="pictures", unit="picture"):
        rng = np.random.default_rng([options.seed, _SEED, index])
        scene = None
        while scene is None or len(scene.objects) < 2:
            pixels, scene = render(rng, SIGNS, CARDS, TRAINING)
        name = f"{index // 1000:03}/{index:06}.jpg"
        (options.out / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(options.out / "images" / name, quality=95)
        about = {"id": str(index), "image": name}
        told = about | {"conversations": conversation(captions(scene, rng, 4))}
        drawn = draw_questions(scene, rng, options.questions, TRAINING, KINDS, OFTEN)
        said = about | {"conversations": conversation([as_turn(question, rng, SHORT) for question in drawn])}
        described.append(told)
        asked.append(said if index % DESCRIBED else told)
    for what, samples in (("captions", described), ("questions", asked)):
        write_json(options.out / f"{what}.json", samples)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog="python -m llava.train.tiny.files", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
