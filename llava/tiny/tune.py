"""Find the small model's pruning.json: a grid of settings on the tuning set, which no benchmark picture is in.

    python -m llava.tiny.benchmarks --split tune
    python -m llava.tiny.tune --write playground/checkpoints/llava-tiny/pruning.json

Of the settings that stay within `--points` of dense on every benchmark the one with the fewest prefill FLOPs (all
tokens) is chosen; where none does, the one that loses least. Each setting is a resumable evaluation run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llava.eval.model_vqa_loader import number
from llava.eval.suite import run_one
from llava.model.pruning import PruningConfig
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import BENCHMARKS, DEFAULT_OUT

# Layers 0–3 may go without text→visual attention: the model was trained so. It was not trained to do without visual
# self-attention there, which the paper's rule for shallow visual rows removes, and which reading signs needs.
BASE = {"mode": ["shallow", "middle", "deep"], "shallow_mid_layer": 4}
GRID = {
    "shallow_visual": ["dense", "remove"],
    "layer_threshold": [0.98, 0.99, 0.995],
    "tokens_threshold": [0.06, 0.1, 0.15],
    "exit_threshold": [0.99, 0.999],
}


def settings_of(grid: dict[str, list]) -> list[dict[str, Any]]:
    """Return every combination of the grid on top of `BASE`."""
    return [BASE | dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def choose(dense: dict[str, float], tried: list[dict[str, Any]], points: float) -> dict[str, Any]:
    """Return the row to use: fewest FLOPs among those that lose at most `points` anywhere, else the smallest loss."""
    for row in tried:
        row["loss"] = max(dense[name] - row["accuracy"][name] for name in dense)
    close = [row for row in tried if row["loss"] <= points]
    return min(close, key=lambda row: row["flops"]) if close else min(tried, key=lambda row: row["loss"])


def evaluate(args: argparse.Namespace, name: str, config: PruningConfig | None) -> dict[str, Any]:
    """Answer the tuning sets under one config; accuracies in percent and the share of dense FLOPs (all tokens)."""
    runs = {benchmark: run_one(args, Path(args.data_dir) / benchmark, name, config) for benchmark in BENCHMARKS}
    totals = [run["totals"] for run in runs.values()]
    share = [sum(part[key] for part in totals) for key in ("flops_all_tokens", "dense_flops_all_tokens")]
    return {
        "accuracy": {benchmark: run["score"]["accuracy"] for benchmark, run in runs.items()},
        "flops": share[0] / share[1],
    }


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default=CHECKPOINT)
    parser.add_argument("--data-dir", default=str(DEFAULT_OUT["tune"]))
    parser.add_argument("--out", default="runs/tune")
    parser.add_argument("--write", type=Path, help="the .json file to write the chosen settings to")
    parser.add_argument("--points", type=float, default=1.0, help="accuracy that may be lost, in points (default 1)")
    parser.add_argument("--limit", type=number(int, 1), help="ask only the first questions of each benchmark")
    parser.add_argument("--batch-size", type=number(int, 1), default=16)
    parser.add_argument("--device", default="auto")
    parser.set_defaults(dtype="auto", max_new_tokens=16, overwrite=False)
    args = parser.parse_args(argv)
    if args.write and not args.write.parent.is_dir():
        parser.error(f"--write: there is no folder {args.write.parent}")
    try:
        dense = evaluate(args, "dense", None)["accuracy"]
        tried = []
        for place, settings in enumerate(settings_of(GRID), start=1):
            config = PruningConfig.from_dict(settings)
            label = "-".join(str(settings[key]) for key in GRID).replace(".", "_")
            print(f"{place} of {len(settings_of(GRID))}: {label}", file=sys.stderr)
            tried.append({"settings": settings} | evaluate(args, label, config))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"tune: {error}")
    best = choose(dense, tried, args.points)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in (*GRID, *dense, "FLOPs"):
        table.add_column(heading, justify="right")
    table.add_row("dense", *[""] * (len(GRID) - 1), *(f"{value:.1f}" for value in dense.values()), "100%")
    for row in sorted(tried, key=lambda row: row["flops"]):
        cells = [*(str(row["settings"][key]) for key in GRID), *(f"{row['accuracy'][name]:.1f}" for name in dense)]
        table.add_row(*cells, f"{100 * row['flops']:.0f}%", style="bold" if row is best else None)
    Console(width=120).print(table)
    if args.write:
        args.write.write_text(json.dumps(best["settings"], indent=1) + "\n", encoding="utf-8")
    print(json.dumps(best))


if __name__ == "__main__":
    main()
