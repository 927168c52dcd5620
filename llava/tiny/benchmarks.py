"""Write the three small benchmarks: gqa_mini, mme_mini and textvqa_mini, in the file formats of the real ones.

    python -m llava.tiny.benchmarks [--out playground/data/eval] [--questions 1000] [--seed 0] [--split benchmark]

The same arguments give the same bytes (with the same Pillow and numpy). The signs and handwritten digits of the
benchmarks, and four of their pairs of colour and shape, never appear in training (`llava.tiny.worlds`). `--split tune`
writes sets of the same form from other seeds, which show what training shows: what is tuned on them can be measured on
the benchmarks. The benchmark's own files are replaced, anything else in its folder (answers, say) is left alone.

    gqa_mini/llava_gqa_testdev_balanced.jsonl       questions for the model, one image's questions in a row
    gqa_mini/data/testdev_balanced_questions.json   answers and types: {question id: {...}}
    gqa_mini/data/images/*.png

    mme_mini/llava_mme.jsonl                                        questions for the model
    mme_mini/MME_Benchmark_release_version/<category>/000001.png    one picture per pair
    mme_mini/MME_Benchmark_release_version/<category>/000001.txt    the pair: "question<TAB>Yes", "question<TAB>No"

    textvqa_mini/llava_textvqa_val_v051_ocr.jsonl   questions for the model; question_id is the image id
    textvqa_mini/TextVQA_0.5.1_val.json             ten answers to each, matched by image id and lower-cased question
    textvqa_mini/train_images/<image id>.png

MME: five of its perception tasks under their official names, flat as in the release; the question file leaves out
"Please answer yes or no." and ends with the short-answer line, as LLaVA's does; the texts keep the former. TextVQA:
LLaVA's question file adds a "Reference OCR token" line; the small model never saw one in training and there is no OCR
tool here, so it is left out (LLaVA's scorer accepts both shapes).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from llava.cli import number, option, run_command
from llava.files import write_json
from llava.tiny.questions import GQA_KINDS, TEXT_KINDS, YES_NO_KINDS, Question, ask, prompt_text
from llava.tiny.scenes import IMAGE_SIZE, Scene, render
from llava.tiny.worlds import EVALUATION, WORLD_OF, World, picture_seeds

QUESTIONS = 1000
PER_IMAGE = 4
EVAL_FOLDER = Path("playground/data/eval")
DEFAULT_OUT = {"benchmark": EVAL_FOLDER, "tune": EVAL_FOLDER / "tune"}
_PER_KIND = 2
_ANNOTATORS = 10
_GQA_DRAWS, _MME_DRAWS = 100, 60
# kind → GQA's structural and semantic type, and a detailed type (GQA's name where it has one; it does not count)
GQA_TYPES = {
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
MME_CATEGORIES = {
    "existence": "mme_exist",
    "count": "mme_count",
    "position": "mme_pos",
    "color": "mme_color",
    "OCR": "mme_text",
}


def _start_over(folder: Path, owned: Iterable[str]) -> None:
    """Make `folder` and delete the files and folders named in `owned`."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / name for name in owned):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [H, W, 3] RGB; the bytes depend on the pixels only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _row(question_id: str, image: str, question: Question, category: str = "default") -> dict[str, str]:
    return {"question_id": question_id, "image": image, "text": prompt_text(question), "category": category}


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
        draws = (ask(kind, scene, rng, yes=wanted, lone=0.0, world=world) for _ in range(_GQA_DRAWS))
        question = next((q for q in draws if q and q.text not in seen), None)
        if question is None or here[kind] == _PER_KIND:
            possible.remove(kind)
            continue
        seen.add(question.text)
        here[kind] += 1
        asked[kind] += 1
        yeses[kind] += question.answer == "Yes"
        yield question


def _write_gqa(folder: Path, questions: int, seed: int, split: str, per_image: int) -> Iterator[int]:
    """Write exactly `questions` questions; yield the number so far after every picture, as the other writers do."""
    file, world = "llava_gqa_testdev_balanced.jsonl", WORLD_OF[split]
    _start_over(folder, (file, "data"))
    asked, yeses = Counter(), Counter()
    rows, annotations = [], {}
    for i, picture in enumerate(picture_seeds(split, seed, benchmark=0)):
        rng = np.random.default_rng(picture)
        pixels, scene = render(rng, world=world)
        image = f"n{i:06d}"
        _write_png(folder / "data" / "images" / f"{image}.png", pixels)
        for question in choose_questions(scene, rng, asked, yeses, world, per_image):
            question_id = f"{len(rows):08d}"
            annotations[question_id] = {
                "imageId": image,
                "question": question.text,
                "answer": question.answer.lower(),
                "isBalanced": True,
                "types": dict(zip(("structural", "semantic", "detailed"), GQA_TYPES[question.kind], strict=True)),
                "groups": {"global": None, "local": None},
                "semantic": [],
                "entailed": [],
                "equivalent": [],
            }
            rows.append(_row(question_id, f"{image}.png", question))
            if len(rows) == questions:
                break
        yield len(rows)
        if len(rows) == questions:
            break
    write_json(folder / "data" / "testdev_balanced_questions.json", annotations)
    _write_jsonl(folder / file, rows)


def choose_pair(
    kind: str, scene: Scene, rng: np.random.Generator, world: World = EVALUATION
) -> tuple[Question, Question] | None:
    """Draw one question answered yes and one answered no, or None where the scene has no such pair."""
    pair = []
    for yes in (True, False):
        draws = (ask(kind, scene, rng, yes=yes, world=world) for _ in range(_MME_DRAWS))
        pair.append(next((q for q in draws if q), None))
    return None if None in pair else tuple(pair)


def _write_mme(folder: Path, questions: int, seed: int, split: str, per_image: int) -> Iterator[int]:
    """Write as many pairs in every category, so `questions` is rounded up to a multiple of ten."""
    file, images, world = "llava_mme.jsonl", folder / "MME_Benchmark_release_version", WORLD_OF[split]
    _start_over(folder, (file, images.name))
    pictures = iter(picture_seeds(split, seed, benchmark=1))
    pairs = -(-questions // (2 * len(MME_CATEGORIES)))
    rows = []
    for category, kind in MME_CATEGORIES.items():
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
            _write_png(images / image, pixels)
            lines = "".join(f"{q.text}\t{q.answer}\n" for q in pair)
            (images / image).with_suffix(".txt").write_text(lines, encoding="utf-8")
            rows += [_row(image, image, question, category) for question in pair]
            yield len(rows)
    _write_jsonl(folder / file, rows)


def _write_textvqa(folder: Path, questions: int, seed: int, split: str, per_image: int) -> Iterator[int]:
    """Write exactly `questions`: every picture has a sign and a card; the ten annotators of a question agree."""
    file, annotations_file = "llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json"
    _start_over(folder, (file, annotations_file, "train_images"))
    rows, annotations = [], []
    for picture in picture_seeds(split, seed, benchmark=2):
        rng = np.random.default_rng(picture)
        pixels, scene = render(rng, sign_probability=1.0, card_probability=1.0, world=WORLD_OF[split])
        if scene.digit is None:
            continue
        image = f"{picture:016x}"
        _write_png(folder / "train_images" / f"{image}.png", pixels)
        for question in [ask(kind, scene, rng) for kind in TEXT_KINDS][: questions - len(rows)]:
            annotations.append(
                {
                    "question_id": len(rows),
                    "question": question.text,
                    "image_id": image,
                    "image_width": IMAGE_SIZE,
                    "image_height": IMAGE_SIZE,
                    "image_classes": [],
                    "answers": [question.answer] * _ANNOTATORS,
                    "set_name": "val",
                }
            )
            rows.append(_row(image, f"{image}.png", question))
        yield len(rows)
        if len(rows) == questions:
            break
    header = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    write_json(folder / annotations_file, {**header, "data": annotations})
    _write_jsonl(folder / file, rows)


_WRITERS = {"gqa_mini": _write_gqa, "mme_mini": _write_mme, "textvqa_mini": _write_textvqa}
BENCHMARKS = tuple(_WRITERS)


def write_benchmarks(
    out: Path,
    questions: int = QUESTIONS,
    seed: int = 0,
    split: str = "benchmark",
    progress: bool = False,
    per_image: int = PER_IMAGE,
    names: Sequence[str] = BENCHMARKS,
) -> dict[str, int]:
    """Write the benchmarks `names` into folders of `out`; return the number of questions written, by benchmark.

    questions:
        of each benchmark; mme_mini rounds up to a multiple of ten
    seed:
        0–99, one of 100 sets of pictures that share none
    split:
        "benchmark" or "tune" (`llava.tiny.worlds`)
    per_image:
        questions of gqa_mini about one picture; textvqa_mini has two, mme_mini a pair

    Raises:
        ValueError: fewer than one question, an unknown split, a seed out of range; before anything is written.

    """
    for what, value in (("questions", questions), ("per_image", per_image)):
        if value < 1:
            raise ValueError(f"{what} must be at least 1, got {value}")
    picture_seeds(split, seed, benchmark=0)
    written = {}
    for name in names:
        with tqdm(total=questions, desc=name, unit="question", disable=not progress) as bar:
            for count in _WRITERS[name](Path(out) / name, questions, seed, split, per_image):
                bar.update(count - bar.n)
            written[name] = count
    return written


@dataclass(kw_only=True)
class Options:
    """Options of the command: sets to write and output folder."""

    out: Path | None = option(None, help=f"default {EVAL_FOLDER}, for --split tune {DEFAULT_OUT['tune']}")
    questions: int = option(QUESTIONS, help=f"questions of each benchmark (default {QUESTIONS})", type=number(int, 1))
    seed: int = option(0, help="which of 100 disjoint sets, 0 to 99 (default 0)", type=number(int, 0, 99))
    split: Literal["benchmark", "tune"] = option("benchmark", help="tune: for choosing thresholds")
    per_image: int = option(
        PER_IMAGE, help=f"questions of gqa_mini about one picture (default {PER_IMAGE})", type=number(int, 1)
    )


def work(options: Options) -> None:
    """Write the three benchmarks."""
    out = options.out or DEFAULT_OUT[options.split]
    written = write_benchmarks(out, options.questions, options.seed, options.split, True, options.per_image)
    for name, count in written.items():
        print(f"{out / name}: {count} questions")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog="python -m llava.tiny.benchmarks", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
