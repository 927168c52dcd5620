"""Find the small model's pruning.json on the tuning sets, which share no picture with the benchmarks.

    python -m llava.tiny.benchmarks --split tune --questions 300
    python -m llava.tiny.tune --write playground/checkpoints/llava-tiny/pruning.json

The three stages, from the paper's `layer_threshold` on. For each number of shallow layers in `SHALLOW` bisection seeks
the largest `tokens_threshold` under which no benchmark loses more than `--points` against dense; then, for the cheapest
so far, the highest `layer_threshold` (more prompts filter at the first layer that may), then the lowest
`exit_threshold`. Of all settings tried that stay within `--points` everywhere the one with the fewest prefill FLOPs
(all tokens) is chosen; where none does, the one that loses least. The default of half a point leaves a margin: other
questions should lose no more than one. Visual self-attention in the shallow layers, which the paper removes, is kept
only if nothing passes without it. About fifteen settings are tried; each is a resumable evaluation run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.cli import (
    GenerationOptions,
    ModelOptions,
    OutputOptions,
    UserError,
    command_of,
    number,
    option,
    print_json,
    run_command,
)
from llava.files import write_json
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import BENCHMARKS, DEFAULT_OUT

if TYPE_CHECKING:
    from llava.eval.runner.run import Run

PROG = "python -m llava.tiny.tune"
BASE = {"mode": ["shallow", "middle", "deep"]}
SHALLOW = (4, 3)
# from the most careful to the most aggressive
TOKENS = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0)
LAYERS = (0.995, 0.998, 0.999, 0.9995, 0.9999)
EXITS = (0.999, 0.998, 0.995, 0.99, 0.98, 0.95, 0.9)
VARIED = ("shallow_mid_layer", "shallow_visual", "tokens_threshold", "exit_threshold", "layer_threshold")


def search(ask: Callable[[dict[str, Any]], float | None]) -> None:
    """Search for the most aggressive passing settings; `ask` returns the FLOPs of a passing one, else None."""
    from llava.eval.tuning.search import last_passing

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
            last_passing([base | {"tokens_threshold": value} for value in TOKENS], passes)
        if found:
            for key, values in (("layer_threshold", LAYERS), ("exit_threshold", EXITS)):
                _, cheapest = min(found, key=lambda passed: passed[0])
                last_passing([cheapest | {key: value} for value in values[1:]], passes)
            return


def loss(dense: dict[str, float], row: dict[str, Any]) -> float:
    """Return the points that the worst benchmark loses."""
    return max(dense[name] - row["accuracy"][name] for name in dense)


def choose(dense: dict[str, float], tried: list[dict[str, Any]], points: float) -> dict[str, Any]:
    """Return the row to use: fewest FLOPs among those that lose at most `points` anywhere, else the smallest loss."""
    close = [row for row in tried if loss(dense, row) <= points]
    return min(close, key=lambda row: row["flops"]) if close else min(tried, key=lambda row: loss(dense, row))


def row_of(settings: dict[str, Any] | None, runs: dict[str, Run]) -> dict[str, Any]:
    """Return a config's accuracies in percent, by benchmark, and its share of dense FLOPs.

    `flops` counts all tokens, `visual_flops` the visual ones, as the paper does.
    """

    def share(key: str) -> float:
        sums = [run.costs.sums for run in runs.values()]
        return sum(one[key] for one in sums) / sum(one[f"dense_{key}"] for one in sums)

    return {
        "settings": settings,
        "accuracy": {benchmark: run.scores["accuracy"] for benchmark, run in runs.items()},
        "flops": share("flops_all_tokens"),
        "visual_flops": share("flops"),
    }


def print_table(dense: dict[str, float], tried: list[dict[str, Any]], best: dict[str, Any]) -> None:
    """Print all trials, the cheapest first, with the chosen one marked."""
    from llava.eval.results.table import Column, Table

    shares = [Column("visual_flops", "FLOPs, visual", ".1%"), Column("flops", "all tokens", ".1%")]
    columns = [*(Column(key, left=True) for key in VARIED), *(Column(name, form=".1f") for name in dense), *shares]
    table = Table([*columns, Column("chosen", " ")])
    table.add(shallow_mid_layer="dense", **{key: "" for key in VARIED[1:]}, **dense, visual_flops=1, flops=1, chosen="")
    for row in sorted(tried, key=lambda row: row["flops"]):
        settings = {key: str(row["settings"][key]) for key in VARIED}
        table.add(**settings, **row["accuracy"], **row, **{"chosen": "chosen" if row is best else ""})
    table.print()


@dataclass(kw_only=True)
class Options(ModelOptions, GenerationOptions, OutputOptions):
    """Options of the command: tuning sets and the accuracy that may be lost."""

    model_path: str = option(CHECKPOINT, help=f"checkpoint of the small model (default {CHECKPOINT})")
    batch_size: int = option(16, help="questions per batch (default 16)", type=number(int, 1))
    max_new_tokens: int | None = option(16, help="longest answer in tokens (default 16)", type=number(int, 1))
    data_dir: Path = option(DEFAULT_OUT["tune"], help=f"folder of the tuning sets (default {DEFAULT_OUT['tune']})")
    out: Path = option(Path("runs/tune"), help="folder of the answers (default runs/tune)")
    write: Path | None = option(None, help="the .json file to write the chosen settings to")
    points: float = option(0.5, help="accuracy that may be lost, in points (default 0.5)", type=number(float, 0))


def work(options: Options) -> None:
    """Search, print the trials, write the chosen config."""
    from llava.eval.benchmarks import find_benchmark
    from llava.eval.runner.evaluator import DENSE, Evaluator
    from llava.model.pruning import PruningConfig

    if options.write and not options.write.parent.is_dir():
        raise UserError(f"--write: there is no folder {options.write.parent}")
    evaluator = Evaluator(options, command_of(PROG, options))
    benchmarks = [find_benchmark(name) for name in BENCHMARKS]
    tried: list[dict[str, Any]] = []

    def evaluate(name: str, settings: dict[str, Any] | None) -> dict[str, Any]:
        config = None if settings is None else PruningConfig.from_dict(settings)
        plans = [
            evaluator.plan(one, one.at(options.data_dir), options.out / one.name / f"{name}.jsonl", config)
            for one in benchmarks
        ]
        return row_of(settings, {plan.benchmark.name: evaluator.run(plan) for plan in plans})

    def ask(settings: dict[str, Any]) -> float | None:
        name = "-".join(str(settings[key]) for key in VARIED).replace(".", "_")
        print(f"setting {len(tried) + 1}: {name}", file=sys.stderr)
        tried.append(evaluate(name, settings))
        return tried[-1]["flops"] if loss(dense, tried[-1]) <= options.points else None

    dense = evaluate(DENSE, None)["accuracy"]
    search(ask)
    best = choose(dense, tried, options.points)
    print_table(dense, tried, best)
    if loss(dense, best) > options.points:
        print(f"no setting stays within {options.points:g} points of dense on every benchmark", file=sys.stderr)
    if options.write:
        write_json(options.write, best["settings"], indent=1)
    print_json(best | {"dense": dense, "loss": loss(dense, best)}, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog=PROG, description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
