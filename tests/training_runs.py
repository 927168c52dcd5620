"""Training runs in seconds: a text model, its LLaVA, captions and questions about squares of one colour."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
from llava_fixtures import LLAMA, make_model, write_checkpoint, write_json, write_weights
from PIL import Image
from safetensors.torch import load_file

from llava.train.train import train

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}


def turns(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]


def write_world(folder: Path) -> Path:
    """Write llava/ (tower in llava/vision_tower), vicuna/ (its language model), img/, captions.json, questions.json."""
    llava = write_checkpoint(folder / "llava", make_model(seed=3))
    vicuna = folder / "vicuna"
    vicuna.mkdir()
    weights = load_file(llava / "model.safetensors")
    write_weights(vicuna, {name: tensor for name, tensor in weights.items() if "mm_projector" not in name})
    write_json(vicuna / "config.json", LLAMA | {"model_type": "llama"})
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(llava / name, vicuna / name)
    (folder / "img").mkdir()
    captions, questions = [], []
    for number in range(12):
        colour = list(COLOURS)[number % 3]
        image = {"id": f"s{number}", "image": f"{number}.png"}
        Image.fromarray(np.full((20, 24, 3), COLOURS[colour], np.uint8)).save(folder / "img" / image["image"])
        captions.append(image | {"conversations": turns("Describe it.\n<image>", f"a {colour} square")})
        asked = ("<image>\nWhat is the colour?", colour, "Is it small?", "no, it is a square")
        questions.append(image | {"conversations": turns(*asked[: 2 + 2 * (number % 2)])})
    questions += [{"id": "t", "conversations": turns("What is 42?", "a small circle")}] * 4
    write_json(folder / "captions.json", captions)
    write_json(folder / "questions.json", questions)
    return folder


def command(world: Path, out: Path, **options) -> list[str]:
    """Return the command line of a run; a value of None leaves an option out."""
    given = {
        "model_name_or_path": world / "llava",
        "data_path": world / "questions.json",
        "image_folder": world / "img",
        "output_dir": out,
        "model_max_length": 256,
        "per_device_train_batch_size": 4,
        "max_steps": 12,
        "save_steps": 5,
        "learning_rate": 3e-3,
        "report_to": "none",
        "disable_tqdm": True,
    }
    words = (given | options).items()
    return [word for name, value in words if value is not None for word in (f"--{name}", str(value))]


def run(world: Path, out: Path, **options) -> list[float]:
    """Train in this process and return the losses."""
    train(command(world, out, **options))
    return losses(out)


def losses(out: Path) -> list[float]:
    with open(out / "learning_curve.csv") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def edited(world: Path, name: str, change) -> Path:
    """Write a copy of questions.json whose first sample `change` has altered."""
    samples = json.loads((world / "questions.json").read_text())
    change(samples[0])
    write_json(world / name, samples)
    return world / name
