"""Find the small model's pruning.json on the tuning sets, which show what training shows and no benchmark's picture.

    python -m llava.tiny.benchmarks --split tune --questions 300
    python -m llava.tiny.tune --write playground/checkpoints/llava-tiny/pruning.json

The three stages, from the paper's `layer_threshold` on. For each number of shallow layers in `SHALLOW` bisection seeks
the largest `tokens_threshold` under which no benchmark loses more than `--points` against dense; then, for the cheapest
so far, the highest `layer_threshold` (more prompts filter at the first layer that may), then the lowest
`exit_threshold`. Of all settings tried that stay within `--points` everywhere the one with the fewest prefill FLOPs
(all tokens) is chosen; where none does, the one that loses least. Half a point is the default, so that other questions
lose no more than one. Visual self-attention in the shallow layers, which the paper removes, is left alone only where
nothing passes without it. About fifteen settings are asked; each is a resumable evaluation run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llava.eval.model_vqa_loader import number
from llava.eval.runner.running import Loader
from llava.eval.suite import run_one
from llava.eval.tuning.search import boldest
from llava.model.pruning import PruningConfig
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import BENCHMARKS, DEFAULT_OUT

BASE = {"mode": ["shallow", "middle", "deep"]}
SHALLOW = (4, 3)
# from timid to bold
TOKENS = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0)
LAYERS = (0.995, 0.998, 0.999, 0.9995, 0.9999)
EXITS = (0.999, 0.998, 0.995, 0.99, 0.98, 0.95, 0.9)
VARIED = ("shallow_mid_layer", "shallow_visual", "tokens_threshold", "exit_threshold", "layer_threshold")


def search(ask: Callable[[dict[str, Any]], float | None]) -> None:
    """Ask for settings until the boldest ones are found; `ask` returns the FLOPs of one that passes, else None."""
    for visual in ("remove", "dense"):
        found: list[tuple[float, dict[str, Any]]] = []

        def passes(settings: dict[str, Any], found: list = found) -> bool:
            flops = ask(settings)
            if flops is not None:
                found.append((flops, settings))
            return flops is not None

        for shallow in SHALLOW:
            base = BASE | {"shallow_mid_layer": shallow, "shallow_visual": visual}
            base |= {"layer_threshold": LAYERS[0], "exit_threshold": EXITS[0]}
            boldest([base | {"tokens_threshold": value} for value in TOKENS], passes)
        if found:
            for key, values in (("layer_threshold", LAYERS), ("exit_threshold", EXITS)):
                _, cheapest = min(found, key=lambda passed: passed[0])
                boldest([cheapest | {key: value} for value in values[1:]], passes)
            return


def loss(dense: dict[str, float], row: dict[str, Any]) -> float:
    """Return the points that the worst benchmark loses."""
    return max(dense[name] - row["accuracy"][name] for name in dense)


def choose(dense: dict[str, float], tried: list[dict[str, Any]], points: float) -> dict[str, Any]:
    """Return the row to use: fewest FLOPs among those that lose at most `points` anywhere, else the smallest loss."""
    close = [row for row in tried if loss(dense, row) <= points]
    return min(close, key=lambda row: row["flops"]) if close else min(tried, key=lambda row: loss(dense, row))


def evaluate(args: argparse.Namespace, name: str, config: PruningConfig | None, loader: Loader) -> dict[str, Any]:
    """Answer the tuning sets under one config; accuracies in percent and the share of dense FLOPs.

    `flops` counts all tokens, `visual_flops` the visual ones, as the paper does.
    """
    runs = {benchmark: run_one(args, Path(args.data_dir) / benchmark, name, config, loader) for benchmark in BENCHMARKS}
    totals = [run["totals"] for run in runs.values()]

    def share(key: str) -> float:
        return sum(part[key] for part in totals) / sum(part[f"dense_{key}"] for part in totals)

    return {
        "accuracy": {benchmark: run["score"]["accuracy"] for benchmark, run in runs.items()},
        "flops": share("flops_all_tokens"),
        "visual_flops": share("flops"),
    }


def print_table(dense: dict[str, float], tried: list[dict[str, Any]], best: dict[str, Any]) -> None:
    """Print what was tried, the cheapest first, the chosen setting in bold."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in (*VARIED, *dense, "FLOPs, visual", "all tokens"):
        table.add_column(heading, justify="right")
    table.add_row("dense", *[""] * (len(VARIED) - 1), *(f"{value:.1f}" for value in dense.values()), "100%", "100%")
    for row in sorted(tried, key=lambda row: row["flops"]):
        cells = [*(str(row["settings"][key]) for key in VARIED), *(f"{row['accuracy'][name]:.1f}" for name in dense)]
        shares = (f"{100 * row[key]:.1f}%" for key in ("visual_flops", "flops"))
        table.add_row(*cells, *shares, style="bold" if row is best else None)
    Console(width=170).print(table)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default=CHECKPOINT)
    parser.add_argument("--data-dir", default=str(DEFAULT_OUT["tune"]))
    parser.add_argument("--out", default="runs/tune")
    parser.add_argument("--write", type=Path, help="the .json file to write the chosen settings to")
    parser.add_argument("--points", type=float, default=0.5, help="accuracy that may be lost, in points (default 0.5)")
    parser.add_argument("--batch-size", type=number(int, 1), default=16)
    parser.add_argument("--device", default="auto")
    parser.set_defaults(dtype="auto", max_new_tokens=16, overwrite=False, limit=None)
    args = parser.parse_args(argv)
    if args.write and not args.write.parent.is_dir():
        parser.error(f"--write: there is no folder {args.write.parent}")
    tried: list[dict[str, Any]] = []
    loader = Loader()

    def ask(settings: dict[str, Any]) -> float | None:
        label = "-".join(str(settings[key]) for key in VARIED).replace(".", "_")
        print(f"setting {len(tried) + 1}: {label}", file=sys.stderr)
        tried.append({"settings": settings} | evaluate(args, label, PruningConfig.from_dict(settings), loader))
        return tried[-1]["flops"] if loss(dense, tried[-1]) <= args.points else None

    try:
        dense = evaluate(args, "dense", None, loader)["accuracy"]
        search(ask)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"tune: {error}")
    best = choose(dense, tried, args.points)
    print_table(dense, tried, best)
    if loss(dense, best) > args.points:
        print(f"no setting stays within {args.points:g} points of dense on every benchmark", file=sys.stderr)
    if args.write:
        args.write.write_text(json.dumps(best["settings"], indent=1) + "\n", encoding="utf-8")
    print(json.dumps(best | {"dense": dense, "loss": loss(dense, best)}))


if __name__ == "__main__":
    main()
