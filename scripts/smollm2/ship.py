"""Copy a trained LoRA to where it ships: what the two paths in it name is then found beside it.

python scripts/smollm2/ship.py runs/smollm2/llava-smollm2 playground/checkpoints/llava-smollm2
"""

import json
import shutil
import sys
from pathlib import Path

from llava.files import write_json

FILES = ("adapter_model.safetensors", "non_lora_trainables.bin", "learning_curve.csv", "learning_curve.png")


def ship(trained: Path, folder: Path) -> None:
    """Copy the weights and the curve; write both configurations with paths relative to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(trained / name, folder / name)
    paths = {"config.json": ("mm_vision_tower", "../llava-tiny/vision_tower")}
    paths["adapter_config.json"] = ("base_model_name_or_path", "../smollm2-135m-instruct")
    for name, (key, path) in paths.items():
        write_json(folder / name, json.loads((trained / name).read_text(encoding="utf-8")) | {key: path}, indent=2)


if __name__ == "__main__":
    ship(Path(sys.argv[1]), Path(sys.argv[2]))
