"""What a run of the evaluation loader is going to do, checked as far as possible before the model loads."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava.eval.runner.answering import Generation
from llava.eval.runner.questions import Question, Skipped, get_chunk, read_questions, require_images
from llava.eval.runner.runfile import fingerprint
from llava.model.checkpoint import find_source
from llava.model.inputs import DEFAULT_CONV_MODE
from llava.model.layouts import read_layout
from llava.model.preflight import resolve
from llava.model.pruning import PruningConfig
from llava.utils import pick_device, pick_dtype


@dataclass(frozen=True)
class Plan:
    """What a command asks for, checked as far as that goes without the model.

    `known`: all questions of the file; `selected`: those of this run's chunk whose image is there; `settings`: what the
    answers depend on; `filled_in`: settings of the pruning config that were left open, as the model's depth gives them.
    """

    config: PruningConfig | None
    known: list[Question]
    selected: list[Question]
    skipped: list[Skipped]
    generation: Generation
    device: torch.device
    dtype: torch.dtype
    answers_file: Path
    settings: dict[str, Any]
    filled_in: dict[str, Any]


def make_plan(args: argparse.Namespace) -> Plan:
    """Check everything that can be checked before the model loads; `ValueError` (one line) for the first mistake."""
    config = None if args.pruning_config is None else PruningConfig.of(args.pruning_config)
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    question_file, answers_file = Path(args.question_file).expanduser(), Path(args.answers_file).expanduser()
    if not Path(args.image_folder).expanduser().is_dir():
        raise ValueError(f"--image-folder {args.image_folder!r} is not a folder")
    if answers_file.is_dir():
        raise ValueError(f"--answers-file {args.answers_file!r} is a folder: give a file")
    if answers_file.exists() and question_file.exists() and answers_file.samefile(question_file):
        raise ValueError(f"--answers-file and --question-file are both {args.question_file!r}")
    known = read_questions(question_file, args.image_folder)
    chosen = list(get_chunk(known[: args.limit], args.num_chunks, args.chunk_idx))
    selected, skipped = require_images(chosen, args.skip_bad)
    source = find_source(os.path.expanduser(args.model_path), "--model-path", {})
    layout = read_layout(source.folder)
    layout.check_conv_mode(args.conv_mode)
    config, filled_in = resolve(config, source, layout)
    base = None if args.model_base is None else find_source(os.path.expanduser(args.model_base), "--model-base", {})
    how = Generation(args.temperature, args.top_p, args.num_beams, args.max_new_tokens, args.seed)
    settings = {
        "model": source.identity(),
        "model_base": base and base.identity(),
        "pruning_config": config and config.to_dict(),
        "question_file": fingerprint(question_file)[:16],
        "chunk": [args.chunk_idx, args.num_chunks],
        "conv_mode": args.conv_mode or (DEFAULT_CONV_MODE if layout.has_conversations else None),
        "dtype": str(dtype).removeprefix("torch."),
        "temperature": how.temperature,
        "top_p": how.top_p,
        "num_beams": how.num_beams,
        "max_new_tokens": how.max_new_tokens,
    }
    if how.temperature > 0:
        settings |= {"seed": how.seed, "batch_size": args.batch_size}
    return Plan(config, known, selected, skipped, how, device, dtype, answers_file, settings, filled_in)
