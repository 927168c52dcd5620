"""Fits FitPrune's numbers of visual tokens to a model on a few questions of a benchmark; writes a pruning config.

The questions are read, not answered, and their annotations play no part (arXiv 2409.10197, section 3).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava.conversation import conv_templates
from llava.eval.model_vqa_loader import Parser, number
from llava.eval.runner.batches import BatchDataset, Group
from llava.eval.runner.questions import Question, read_questions, require_images
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.inputs import inputs_for
from llava.model.pruning.fitting import fit

EPILOG = """
examples:
  half of the visual tokens' FLOPs, on sixteen questions of the mini benchmark
    python -m llava.eval.fit_fitprune --model-path playground/checkpoints/llava-tiny --reduction 0.5 \\
        --question-file playground/data/eval/gqa_mini/llava_gqa_testdev_balanced.jsonl \\
        --image-folder playground/data/eval/gqa_mini/data/images --output runs/fitprune.json
  then
    python -m llava.eval.model_vqa_loader … --pruning-config runs/fitprune.json

The last line printed is the config. Exit status: 0, 1 after one line on stderr, 2 for a wrong command line.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog="python -m llava.eval.fit_fitprune",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model-path", required=True, help="checkpoint folder or hub name; docs/models.md lists the known models")
    add("--model-base", help="base model of a projector-only checkpoint")
    add("--question-file", required=True, help="JSONL with question_id, text and image")
    add("--image-folder", required=True, help="folder that the questions' image paths are relative to")
    add("--reduction", required=True, type=number(float, 0, 1), help="share of the visual tokens' FLOPs to save")
    add("--output", required=True, help="config to write, a .json that --pruning-config takes")
    add("--prompts", type=number(int, 1), default=16, help="questions with an image to read, spread over the file")
    add("--batch-size", type=number(int, 1), default=4, help="questions a batch (default 4)")
    add("--conv-mode", choices=list(conv_templates), help="prompt format of LLaVA's original layout")
    add("--device", default="auto", help="auto (default: CUDA, MPS, CPU in this order), cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", help="float32, float16, bfloat16; auto (default) is float32 on CPU, else float16")
    return parser


def choose(questions: Sequence[Question], count: int) -> list[Question]:
    """Return `count` of the questions that have an image, evenly spread over the file; all if there are fewer.

    Raises `ValueError` where none has.
    """
    shown = [question for question in questions if question.path is not None]
    if not shown:
        raise ValueError("none of the questions has an image: there is nothing to fit")
    return [shown[i * len(shown) // count] for i in range(count)] if count < len(shown) else shown


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fit, write the config and return it. Raises `ValueError` (one line) for bad input."""
    output = Path(args.output).expanduser()
    if output.suffix != ".json":
        raise ValueError(f"--output {output} must end in .json, as --pruning-config takes it")
    chosen = choose(read_questions(args.question_file, args.image_folder), args.prompts)
    questions, missing = require_images(chosen, skip_bad=True)
    if missing:
        raise ValueError(f"{missing[0].question.where}: {missing[0].reason}")
    output.parent.mkdir(parents=True, exist_ok=True)
    path = os.path.expanduser(args.model_path)
    tokenizer, model, processor, _ = load_pretrained_model(
        path, args.model_base, get_model_name_from_path(path), device=args.device, dtype=args.dtype
    )
    inputs = inputs_for(tokenizer, processor, model.config, args.conv_mode)
    size = args.batch_size
    groups = [Group(tuple(questions[start : start + size]), 0) for start in range(0, len(questions), size)]
    seen, batches = {}, []
    with torch.inference_mode():
        for batch in map(BatchDataset(groups, inputs).__getitem__, range(len(groups))):
            for question in batch.questions:
                reason = batch.refused.get(question) or batch.errors.get(question.path)
                if reason:
                    raise ValueError(f"{question.where}: {reason}")
            seen |= zip(batch.pictures, inputs.encode_images(model, list(batch.pictures.values())), strict=True)
            shown = [[seen[question.path]] for question in batch.questions]
            batches.append(inputs.collate(batch.rows, shown, model))

        def read() -> None:
            for batch in batches:
                model.generate(**batch, max_new_tokens=1, do_sample=False, pad_token_id=inputs.tokenizer.pad_token_id)

        config = fit(model, read, args.reduction).to_dict()
    output.write_text(json.dumps(config) + "\n", encoding="utf-8")
    left = np.array([config["visual_tokens"], *config["keep"][:-1]])
    print(f"{output}: {left.mean():.1f} of {left[0]} visual tokens a layer, from {len(questions)} questions")
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        print(json.dumps(run(args)))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
