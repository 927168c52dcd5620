"""Print the config with which a method meets a budget on a model, from the model's dimensions alone.

Budgets are counted without weights, for a prompt of so many visual and text tokens. Methods that decide by what they
measure have no such config: `llava.eval.calibrate` and `llava.eval.compare_methods` set VisiPruner on questions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.cli import ModelOptions, OutputOptions, UserError, number, option, print_json, run_command

if TYPE_CHECKING:
    from llava.eval.tuning.matching import DryRun, Matched
    from llava.model.pruning import PruningConfig

PROG = "python -m llava.eval.budget"
EPILOG = """
examples:
  python -m llava.eval.budget --model-path playground/checkpoints/llava-tiny --method fastv --flops 0.5
  python -m llava.eval.budget --model-path playground/checkpoints/llava-tiny --method '{"method": "fastv", "k": 3}' \\
      --tokens 64 --out runs/fastv.json
  python -m llava.eval.budget --model-path playground/checkpoints/llava-tiny --method vtw --kl 0.003 \\
      --questions playground/data/eval/gqa_mini/llava_gqa_testdev_balanced.jsonl \\
      --images playground/data/eval/gqa_mini/data/images

--flops, --kv    shares of dense, of the prefill; --tokens is what papers mean by "64 tokens": three readings of one
                 config (FLOPs, cache, mean visual tokens per layer) stand beside each other in the table
--kl             VTW's own criterion (its --findk): the first layer, from 5 on, at which the mean KL of the next token's
                 distribution to the dense one is at most this (0.003 for LLaVA-1.5-7B, 0.0005 for the 13B)

The table has a line for every choice of layers that meets the budget; the config at the end is the one with the
method's default layers, or the first. Exit status: 0, 1 after one line on stderr, 2 for a wrong command line.
"""


@dataclass(kw_only=True)
class Options(ModelOptions, OutputOptions):
    """A model, a method and a budget."""

    method: str = option(help="a method's name, path/to/file.py:Class, or a config whose layers stay as they are")
    flops: float | None = option(None, help="share of dense prefill FLOPs", type=number(float, 0, 1))
    kv: float | None = option(None, help="share of the dense cache after the prefill", type=number(float, 0, 1))
    tokens: float | None = option(None, help="visual tokens per layer, mean over layers", type=number(float, 0))
    kl: float | None = option(None, help="for vtw: mean KL of the next token to dense", type=number(float, 0))
    count: str = option("visual", help="FLOPs of visual tokens (default), or of all", choices=("visual", "all"))
    visual_tokens: int | None = option(
        None, help="of the prompt (default: one image's where the model says, else 576)", type=number(int, 1)
    )
    text_tokens: int = option(60, help="text tokens of the prompt (default 60)", type=number(int, 1))
    questions: str | None = option(None, help="for --kl: JSONL with question_id, text and image", metavar="FILE")
    images: str | None = option(None, help="for --kl: folder of the questions' images", metavar="FOLDER")
    prompts: int = option(
        20, help="for --kl: questions to read, spread over the file (default 20)", type=number(int, 1)
    )
    batch_size: int = option(4, help="for --kl: questions per batch (default 4)", type=number(int, 1))
    out: Path | None = option(None, help="config to write, a .json that --pruning-config takes")


def work(options: Options) -> None:
    """Find the config, print it and write it."""
    options.require_dense("--method names what is set to the budget")
    given = [name for name in ("flops", "kv", "tokens", "kl") if getattr(options, name) is not None]
    if len(given) != 1:
        raise UserError(f"give one of --flops, --kv, --tokens and --kl, got {' and '.join(given) or 'none'}")
    if options.out is not None and options.out.suffix != ".json":
        raise UserError(f"--out {options.out} must end in .json, as --pruning-config takes it")
    config, figures = by_kl(options) if given == ["kl"] else by_shapes(options, given[0])
    print(json.dumps(config.to_dict()))
    if options.out is not None:
        from llava.files import write_json

        options.out.expanduser().parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out.expanduser(), config.to_dict())
    print_json({"config": config.to_dict(), **figures}, options)


def by_shapes(options: Options, budget: str) -> tuple[PruningConfig, dict[str, Any]]:
    """Set every choice of a method's layers to the budget, print them, and return one."""
    from llava.eval.results.table import Column, Table
    from llava.eval.tuning.matching import DryRun

    shape, visual = dimensions(options)
    visual = options.visual_tokens or visual or 576
    measure = options.count if budget == "flops" else budget
    dry = DryRun(shape, [(options.text_tokens + visual, visual)], measure)
    wanted = getattr(options, budget)
    share = wanted / visual if budget == "tokens" else wanted
    made = choices(options.method, shape.layers)
    found = dry.settle(made, share, len(made))
    table = Table(
        [
            Column("config", "config"),
            Column("visual", "FLOPs visual", "{:.1%}".format),
            Column("all", "FLOPs all", "{:.1%}".format),
            Column("kv", "KV", "{:.1%}".format),
            Column("tokens", "visual tokens / layer", ".1f"),
        ]
    )
    for one in found:
        table.add(json.dumps(one.config.to_dict()), **figures_of(dry, one))
    table.print(f"{visual} visual and {options.text_tokens} text tokens, shares of dense")
    best = preferred(found)
    return best.config, figures_of(dry, best)


def figures_of(dry: DryRun, one: Matched) -> dict[str, float]:
    """Return the shares of FLOPs and KV, and the mean number of visual tokens per layer."""
    costs = dry.costs(one.config)
    return costs._asdict() | {"tokens": costs.tokens * dry.visual_tokens}


def choices(method: str, layers: int) -> list[PruningConfig]:
    """Return the configs that differ in their layers: a method's, or the one that is given."""
    from llava.eval.tuning.choosing import schedules
    from llava.model.pruning import PruningConfig

    if method.lstrip().startswith("{") or method.endswith(".json"):
        config = PruningConfig.from_json(method)
        config.check_layers(layers)
        return [config.resolved(layers)]
    made = schedules(method, layers)
    if not made:
        raise UserError(
            f"method {method!r} decides by what it measures: set it with llava.eval.compare_methods"
            f"{' or llava.eval.calibrate' * (method == 'visipruner')}{' or fit_fitprune' * (method == 'fitprune')}"
        )
    return made


def preferred(found: Sequence[Matched]) -> Matched:
    """Return the config that has its class's default layers, else the first."""
    from llava.model.pruning.fields import types_of

    for one in found:
        defaults = {name: getattr(type(one.config), name, None) for name in types_of(type(one.config))}
        if all(defaults.get(key) == value for key, value in one.config.layer_settings().items()):
            return one
    return found[0]


def dimensions(options: Options) -> tuple[Any, int | None]:
    """Return the decoder's dimensions, and the visual tokens of one image where the model says; reads no weights."""
    from llava.model.formats import read_layout
    from llava.model.parts import find_parts
    from llava.model.preflight import skeleton
    from llava.model.pruning.families import shape_of

    base = options.model_base and os.path.expanduser(options.model_base)
    source = find_parts(os.path.expanduser(options.model_path), base, {}).config
    model = skeleton(source, read_layout(source.folder))
    visual = getattr(model, "visual_tokens_per_image", None)
    return shape_of(model), visual


def by_kl(options: Options) -> tuple[PruningConfig, dict[str, Any]]:
    """Find VTW's layer on questions, and print the mean KL of every layer that was tried."""
    from llava.eval.runner.evaluator import Evaluator
    from llava.eval.runner.questions import read_questions, require_images
    from llava.eval.tuning.benchmark_set import evenly
    from llava.eval.tuning.fitted import reader
    from llava.model.preflight import check_model
    from llava.model.pruning.fitting import FIRST_EXIT, first_exit, next_token_kl

    if options.method != "vtw" or options.questions is None or options.images is None:
        raise UserError("--kl searches for the layer of --method vtw, on --questions with --images")
    with_image = [question for question in read_questions(options.questions, options.images) if question.paths]
    questions, missing = require_images(evenly(with_image, options.prompts), skip_bad=True)
    if missing or not questions:
        raise missing[0].refusal() if missing else UserError("none of the questions has an image")
    layers = range(FIRST_EXIT, check_model(options, None).layout.layers)
    if not layers:
        raise UserError(f"the search begins at layer {FIRST_EXIT}, and the model has no more layers")
    evaluator = Evaluator(options)
    loaded = evaluator.loaded
    curve = next_token_kl(loaded.model, reader(loaded, evaluator.batches(questions)), layers)
    means = dict(zip(layers, curve.mean(1).tolist(), strict=True))
    print(f"mean KL over {len(questions)} prompts: " + ", ".join(f"{k}: {value:.2g}" for k, value in means.items()))
    return first_exit(curve, layers, options.kl), {"kl": means}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog=PROG, description=__doc__, epilog=EPILOG)


if __name__ == "__main__":
    raise SystemExit(main())
