"""Fine-tune a model on images and text, with LLaVA's options: `python -m llava.train.train` (docs/training.md)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.cli import UserError, exit_status


def train(argv: Sequence[str] | None = None, attention: str = "sdpa") -> None:
    """Train as a command line says, from the newest checkpoint of its folder if there is one.

    Raises `ValueError`, before any weight is read, for options, data and models that cannot work.
    """
    # imported here, so that a wrong option is answered by the parser first
    import torch
    from transformers import set_seed

    from llava.model.preflight import trained_config
    from llava.model.pruning import PruningConfig
    from llava.train import saving
    from llava.train.arguments import parse_arguments
    from llava.train.data import load_data
    from llava.train.models import prepare, trainable
    from llava.train.trainer import LlavaTrainer

    model_options, data_options, args = parse_arguments(argv)
    prepared = prepare(model_options, data_options)
    if model_options.pruning_config is None:
        config = trained_config(prepared.parts.config.folder)
    else:
        config = None if model_options.pruning_config == "none" else PruningConfig.of(model_options.pruning_config)
    if config is not None and not model_options.packed:
        raise UserError("--packed False: a method prunes the packed stream; give --pruning_config none, too")
    if config is not None:
        config = config.resolved(prepared.layers)
        config.check_layers(prepared.layers)
    data = load_data(prepared, data_options)
    with args.main_process_first(desc="checking the data"):
        if args.local_process_index == 0:
            data.check()

    set_seed(args.seed)
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    model = prepared.load(model_options, half, args.device, attention)
    always = config is not None and model_options.pruned_steps == 1
    model.config.visual_schedule = config.to_dict() if always else None  # saved, and run by whoever loads it
    model = trainable(model, model_options, prepared)
    trainer = LlavaTrainer(model, args, data, prepared, (model_options, data_options), config)
    newest = saving.newest_checkpoint(Path(args.output_dir))
    trainer.train(resume_from_checkpoint=newest and str(newest))
    trainer.save_state()
    trainer.save_model()


def main(argv: Sequence[str] | None = None, attention: str = "sdpa") -> int:
    """Command line; returns the exit status."""
    return exit_status(
        lambda: train(argv, attention), "interrupted; the same command continues from the last checkpoint"
    )


if __name__ == "__main__":
    sys.exit(main())
