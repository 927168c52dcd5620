"""Measure how well a checkpoint answers each kind of question, on scenes that neither training nor benchmarks use.

    python -m llava.tiny.accuracy [--model-path playground/checkpoints/llava-tiny] [--scenes 128]

Prints a table (questions, share answered exactly right by greedy decoding) and as the last line one JSON object. Yes/no
kinds have as many answers yes as no, so guessing gives 0.5. Signs, handwritten digits and some pairs of colour and
shape never appear in training (`llava.tiny.worlds`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from llava.cli import ModelOptions, OutputOptions, number, option, print_json, run_command
from llava.tiny.questions import KINDS, Question, prompt_text, questions_about
from llava.tiny.scenes import render
from llava.tiny.worlds import EVALUATION, TEST, World

if TYPE_CHECKING:
    from llava.model.loaded import LoadedModel

CHECKPOINT = "playground/checkpoints/llava-tiny"
LONGEST_ANSWER = 6


def answer(loaded: LoadedModel, pixels: np.ndarray, questions: list[Question], **options) -> list[str]:
    """Answer questions about one picture (uint8 [H, W, 3]) greedily in one batch, the vision tower run once.

    `options` go to `generate` (`pruning_config`, say).
    """
    import torch

    from llava.model.inputs import Turn

    inputs, model = loaded.inputs, loaded.model
    rows = [inputs.encode([Turn(prompt_text(question), images=1)]) for question in questions]
    with torch.inference_mode():
        features = inputs.encode_images(model, [inputs.prepare(Image.fromarray(pixels))])
        batch = inputs.collate(rows, [features] * len(rows), model)
        output = model.generate(**batch, do_sample=False, max_new_tokens=LONGEST_ANSWER, **options)
    return inputs.decode(inputs.new_tokens(output, batch))


def measure(
    loaded: LoadedModel, scenes: int, progress: bool = False, world: World = EVALUATION, **options
) -> dict[str, tuple[int, int]]:
    """Return (right, asked) by kind of question over `scenes` pictures of the test seeds, for the kinds asked."""
    counts = {kind: [0, 0] for kind in KINDS}
    for seed in tqdm(TEST[:scenes], unit="scene", disable=not progress):
        rng = np.random.default_rng(seed)
        pixels, scene = render(rng, world=world)
        questions = list(questions_about(scene, rng, world))
        for question, text in zip(questions, answer(loaded, pixels, questions, **options), strict=True):
            counts[question.kind][0] += text == question.answer
            counts[question.kind][1] += 1
    return {kind: (right, asked) for kind, (right, asked) in counts.items() if asked}


def summarize(counts: dict[str, tuple[int, int]]) -> dict:
    """Return shares by kind, and `mean`, the plain mean over the kinds (rare and frequent kinds weigh alike)."""
    kinds = {kind: {"accuracy": right / asked, "questions": asked} for kind, (right, asked) in counts.items()}
    return {"mean": sum(k["accuracy"] for k in kinds.values()) / len(kinds), "kinds": kinds}


@dataclass(kw_only=True)
class Options(ModelOptions, OutputOptions):
    """Options of the command: checkpoint and number of scenes."""

    model_path: str = option(CHECKPOINT, help=f"checkpoint of the small model (default {CHECKPOINT})")
    scenes: int = option(128, help="pictures, with about 24 questions each (default 128)", type=number(int, 1))


def work(options: Options) -> None:
    """Measure, and print a table and one JSON object."""
    from llava.model.loaded import LoadedModel
    from llava.model.preflight import check_model, config_of

    config = config_of(options)
    check_model(options, config)
    words = {} if config is None else {"pruning_config": config}
    summary = summarize(measure(LoadedModel.from_path(options), options.scenes, progress=True, **words))
    print(f"{'kind':12} {'questions':>9} {'right':>6}")
    for kind, row in summary["kinds"].items():
        print(f"{kind:12} {row['questions']:9d} {row['accuracy']:6.3f}")
    print(f"{'mean':12} {'':9} {summary['mean']:6.3f}")
    about = {"model": options.model_path, "scenes": options.scenes, "pruning": options.pruning_config}
    print_json(about | summary, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog="python -m llava.tiny.accuracy", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
