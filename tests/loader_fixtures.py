"""A small random checkpoint, images and questions for the evaluation loader's tests, and ways to run it on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from llava_fixtures import make_model, write_checkpoint, write_json
from PIL import Image

import llava.model.loaded
from llava.conversation import conv_templates
from llava.eval.model_vqa_loader import main

CONFIG = {
    "mode": ["shallow", "middle", "deep"],
    "shallow_mid_layer": 1,
    "layer_threshold": 0.9999,
    "tokens_threshold": 0.03,
    "exit_threshold": 0.999,
    "exit_patience": 1,
}
IMAGES = ("a.png", "a.png", "a.png", "sub/b.png", "sub/b.png", "c.png", "a.png", "c.png", "c.png", "sub/b.png")
OWN_TO_A_RUN = ("answer_id", "milliseconds", "batch")


def forbid_loading(monkeypatch) -> None:
    """Fail the test if a model's weights are read from here on."""

    def load(*arguments, **options):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(llava.model.loaded, "load_pretrained_model", load)


def write_model(folder: Path) -> Path:
    """A checkpoint with three layers and four visual tokens an image, made to take prompts of any length."""
    model = make_model()
    path = write_checkpoint(folder, model)
    config = json.loads((path / "config.json").read_text())
    write_json(path / "config.json", config | {"tokenizer_model_max_length": 1024, "max_position_embeddings": 1024})
    # what LLaVA-1.5's own checkpoints hold: greedy decoding must not stumble over it
    sampling = {"temperature": 0.9, "top_p": 0.6, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
    write_json(path / "generation_config.json", sampling | {"bos_token_id": 1})
    return path


def write_images(folder: Path) -> Path:
    random = np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True)
    for name, size in (("a.png", (28, 28)), ("sub/b.png", (20, 40)), ("c.png", (50, 30))):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def prompt_of(text: str) -> str:
    """The prompt of one question about one image, written with LLaVA's template alone."""
    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message(conversation.roles[0], f"<image>\n{text}")
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


def questions() -> list[dict]:
    """Ten questions about three images; as in MME and TextVQA, all of one image share an id."""
    words = ("What is it?", "How many red squares are there on the left?", "Is it blue? Answer yes or no.", "Why?")
    return [
        {"question_id": image, "image": image, "text": f"{words[i % 4]} ({i})", "category": "default"}
        for i, image in enumerate(IMAGES)
    ]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Bench:
    """A folder with questions and answers, around a checkpoint and images that tests share."""

    def __init__(self, root: Path, model: Path, images: Path):
        self.root, self.model, self.images = root, model, images
        self.question_file = write_jsonl(root / "questions.jsonl", questions())
        self.answers = root / "out" / "answers.jsonl"

    def arguments(self, *more: str, **changes: object) -> list[str]:
        """The loader's command line; `changes` replace or add flags, None drops one."""
        flags = {
            "model-path": self.model,
            "question-file": self.question_file,
            "image-folder": self.images,
            "answers-file": self.answers,
            "device": "cpu",
            "max_new_tokens": 6,
            "workers": 0,
            "batch-size": 4,
        }
        unchanged = ("top_p", "num_beams", "max_new_tokens")
        flags |= {name if name in unchanged else name.replace("_", "-"): value for name, value in changes.items()}
        given = [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]
        return [*given, *more]

    def run(self, *more: str, **changes: object) -> int:
        return main(self.arguments(*more, **changes))

    def rows(self) -> list[dict]:
        return read_jsonl(self.answers)

    def times(self) -> list[dict]:
        return read_jsonl(self.answers.with_name(self.answers.stem + ".times.jsonl"))

    @property
    def part(self) -> Path:
        """Where the answers of an unfinished run by one process lie."""
        return self.answers.with_name(self.answers.stem + ".parts") / "0.jsonl"

    @property
    def run_file(self) -> Path:
        return self.answers.with_name(self.answers.stem + ".run.json")

    def record(self) -> dict:
        return json.loads(self.run_file.read_text())


def comparable(rows: list[dict]) -> list[dict]:
    """Answers without what differs between any two runs."""
    kept = [{key: value for key, value in row.items() if key not in OWN_TO_A_RUN} for row in rows]
    for row in kept:
        row["metadata"] = {key: value for key, value in row["metadata"].items() if key not in OWN_TO_A_RUN}
    return kept
