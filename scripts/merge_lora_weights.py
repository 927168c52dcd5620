"""Write a projector or LoRA checkpoint as a whole model: base model, adapter and projector in one folder.

    python scripts/merge_lora_weights.py --model-path ./checkpoints/llava-v1.5-7b-lora --save-model-path merged

Every command takes the unmerged folder as well (`--model-base`, where the folder does not name its base).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from llava.cli import ModelOptions, UserError, option, run_command


@dataclass(kw_only=True)
class Options(ModelOptions):
    """Where the checkpoint is, and where the whole model goes."""

    save_model_path: Path = option(help="folder to write")


def work(options: Options) -> None:
    """Load, merged, and save."""
    if options.save_model_path.exists():
        raise UserError(f"--save-model-path {options.save_model_path} is there already: name another folder")
    from llava.model.loaded import LoadedModel
    from llava.model.preflight import check_model
    from llava.train.saving import save_whole

    checked = check_model(options, None)
    loaded = LoadedModel.from_path(options)
    save_whole(loaded.model, (checked.base or checked.source).folder, options.save_model_path)
    print(f"wrote {options.save_model_path}")


if __name__ == "__main__":
    sys.exit(run_command(Options, work, prog="python scripts/merge_lora_weights.py", description=__doc__))
