"""Trained against training-free: the small model fine-tuned dense, with a schedule, and with VisiPruner on.

    python scripts/tiny/trained.py --out runs/trained [--steps 400] [--scenes 64]

Every run starts from llava-tiny-plain and has the same data, steps and learning rates. Prints accuracy on held-out
scenes against FLOPs (share of dense, all tokens) and seconds of training. A second call goes on where the first ended.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from llava.cli import ModelOptions, OutputOptions, number, option, print_json, run_command

BASE = "playground/checkpoints/llava-tiny-plain"
VISIPRUNER = "playground/checkpoints/llava-tiny/pruning.json"
SCHEDULE = '{"method":"schedule","enter":3,"keep":{"5":36,"6":10},"exit":9}'
RUNS = {
    "dense": [],
    "schedule": ["--pruning_config", SCHEDULE],
    "VisiPruner in 90% of the steps": ["--pruning_config", VISIPRUNER, "--pruned_steps", "0.9"],
}
CONFIGS = {"none": None, "visipruner": VISIPRUNER, "schedule": SCHEDULE}
MEASURED = {
    "dense": ("none", "visipruner", "schedule"),
    "schedule": ("schedule",),
    "VisiPruner in 90% of the steps": ("none", "visipruner"),
}


@dataclass(kw_only=True)
class Options(OutputOptions):
    """Where the runs go, and how long they are."""

    out: Path = option(Path("runs/trained"), help="folder of the runs (default runs/trained)")
    steps: int = option(400, help="steps of each run (default 400)", type=number(int, 1))
    batch_size: int = option(8, help="pictures per step, with four questions each (default 8)", type=number(int, 1))
    scenes: int = option(64, help="held-out pictures, with about 24 questions each (default 64)", type=number(int, 1))


def train(options: Options, run: str, folder: Path) -> None:
    """Train one run in a process of its own."""
    settings = {
        "model_name_or_path": BASE,
        "data_path": options.out / "data" / "questions.json",
        "image_folder": options.out / "data" / "images",
        "output_dir": folder,
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch_size,
        "model_max_length": 512,
        "image_aspect_ratio": "pad",
        "learning_rate": 3e-4,
        "warmup_ratio": 0.05,
        "save_steps": 100,
        "save_total_limit": 1,
        "report_to": "none",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "llava.train.train", *words, *RUNS[run]], check=True)


def measure(folder: Path, config: str | None, scenes: int) -> dict[str, float]:
    """Return accuracy and share of dense FLOPs on held-out scenes."""
    from llava.model.loaded import LoadedModel
    from llava.model.pruning import prune
    from llava.tiny import accuracy

    loaded = LoadedModel.from_path(ModelOptions(model_path=str(folder), device="cpu"))
    with prune(loaded.model, config or {"method": "none"}) as session:
        summary = accuracy.summarize(accuracy.measure(loaded, scenes, progress=True))
    spent, dense = (
        sum(of) for of in zip(*((t.flops("all"), t.dense_flops("all")) for t in session.traces), strict=True)
    )
    return {"accuracy": 100 * summary["mean"], "flops": 100 * spent / dense}


def work(options: Options) -> None:
    """Train what is not trained yet, measure, and print the table."""
    from llava.eval.results.table import Column, Table
    from llava.train.tiny import files

    if not (options.out / "data" / "questions.json").exists():
        pictures = options.steps * options.batch_size
        files.work(files.Options(out=options.out / "data", pictures=pictures, questions=4))
    rows = []
    for number_, (run, configs) in enumerate(MEASURED.items()):
        folder = options.out / ("dense", "schedule", "visipruner")[number_]
        if not (folder / "model.safetensors").exists():
            train(options, run, folder)
        history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        seconds = next(row["train_runtime"] for row in reversed(history) if "train_runtime" in row)
        for config in configs:
            found = measure(folder, CONFIGS[config], options.scenes)
            rows.append({"trained": run, "run with": config, "seconds": seconds} | found)
    columns = [Column("trained"), Column("run with"), Column("flops", "FLOPs (% of dense)", ".1f")]
    columns += [Column("accuracy", "accuracy (%)", ".1f"), Column("seconds", "training (s)", ".0f")]
    Table(columns, rows).print()
    print_json(rows, options)


if __name__ == "__main__":
    sys.exit(run_command(Options, work, prog="python scripts/tiny/trained.py", description=__doc__))
