"""Measure how well a checkpoint answers each kind of question, on scenes that neither training nor benchmarks use.

    python -m llava.tiny.accuracy [--model-path playground/checkpoints/llava-tiny] [--scenes 128]

Prints a table (questions, share answered exactly right by greedy decoding) and as the last line one JSON object.
Yes/no kinds ask as many questions with the answer yes as with no, so guessing gives 0.5 there. Signs, handwritten
digits and some pairs of colour and shape are ones that training never shows (`llava.tiny.worlds`).
"""

import argparse
import json
import sys

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from llava.model.inputs import Turn, inputs_for
from llava.tiny.questions import KINDS, Question, prompt_text, questions_about
from llava.tiny.scenes import render
from llava.tiny.seeds import TEST
from llava.tiny.worlds import EVALUATION, World

CHECKPOINT = "playground/checkpoints/llava-tiny"
LONGEST_ANSWER = 6


def answer(loaded: tuple, pixels: np.ndarray, questions: list[Question], **options) -> list[str]:
    """Answer questions about one picture (uint8 [H, W, 3]) greedily in one batch, the vision tower run once.

    `loaded` is what `load_pretrained_model` returns; `options` go to `generate` (`pruning_config`, say).
    """
    tokenizer, model, processor, _ = loaded
    inputs = inputs_for(tokenizer, processor, model.config)
    picture = inputs.prepare(Image.fromarray(pixels))
    rows = [inputs.encode([Turn(prompt_text(question), images=1)]) for question in questions]
    with torch.inference_mode():
        seen = inputs.encode_images(model, [picture])
        batch = inputs.collate(rows, [seen] * len(rows), model)
        output = model.generate(**batch, do_sample=False, max_new_tokens=LONGEST_ANSWER, **options)
    return inputs.decode(inputs.new_tokens(output, batch))


def measure(
    loaded: tuple, scenes: int, progress: bool = False, world: World = EVALUATION, **options
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


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model-path", default=CHECKPOINT)
    parser.add_argument("--scenes", type=int, default=128, help="pictures, with about 24 questions each (default 128)")
    parser.add_argument("--pruning-config", help="JSON or a path to a .json; without it nothing is pruned")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    if args.scenes < 1:
        parser.error(f"--scenes must be at least 1, got {args.scenes}")
    from llava import PruningConfig, load_pretrained_model

    try:
        options = {"pruning_config": PruningConfig.from_json(args.pruning_config)} if args.pruning_config else {}
        loaded = load_pretrained_model(args.model_path, None, "llava-tiny", device=args.device)
    except (OSError, ValueError) as error:
        sys.exit(f"accuracy: {error}")
    summary = summarize(measure(loaded, args.scenes, progress=True, **options))
    print(f"{'kind':12} {'questions':>9} {'right':>6}")
    for kind, row in summary["kinds"].items():
        print(f"{kind:12} {row['questions']:9d} {row['accuracy']:6.3f}")
    print(f"{'mean':12} {'':9} {summary['mean']:6.3f}")
    print(json.dumps({"model": args.model_path, "scenes": args.scenes, "pruning": args.pruning_config, **summary}))


if __name__ == "__main__":
    main()
