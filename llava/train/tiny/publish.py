"""The end of a run: measure, export into LLaVA's layout, write the model card; everything in it comes from the run."""

from pathlib import Path

import torch

from llava.tiny.export import export
from llava.tiny.files import write_json
from llava.tiny.pieces import PieceTokenizer
from llava.train.tiny.card import model_card
from llava.train.tiny.report import measure
from llava.train.tiny.run import Trainer
from llava.train.tiny.states import export_states

FOLDERS = {"pruning-aware": "llava-tiny", "plain": "llava-tiny-plain"}


def greedy_accuracy(folder: Path, device: str, scenes: int) -> dict:
    """Load a checkpoint as every command does and let it answer by greedy decoding."""
    from llava import load_pretrained_model
    from llava.tiny.accuracy import measure, summarize
    from llava.tiny.worlds import EVALUATION

    loaded = load_pretrained_model(folder, None, folder.name, device=device, dtype=torch.float32)
    return summarize(measure(loaded, scenes, world=EVALUATION)) | {"scenes": scenes}


def publish(trainer: Trainer, out: Path) -> Path:
    """Write OUT/llava-tiny or OUT/llava-tiny-plain with its card, and OUT/<recipe>.json with what was measured.

    Files of the same names are replaced, others left alone. Returns the folder.
    """
    folder, settings = out / FOLDERS[trainer.recipe], trainer.settings
    architecture = trainer.architecture
    export(*export_states(trainer.model), PieceTokenizer(architecture.context), folder, architecture)
    report = measure(trainer, settings.reported)
    report["greedy"] = greedy_accuracy(folder, settings.device, settings.greedy)
    write_json(out / f"{trainer.recipe}.json", report)
    (folder / "README.md").write_text(model_card(trainer, report), encoding="utf-8")
    return folder
