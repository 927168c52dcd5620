r"""Dense beside pruned on this machine: time, memory, FLOPs, and how much of what FLOPs promise arrives on the clock.

    python -m llava.eval.bench --shape llava-1.5-7b --num-layers 8 --dtype float32 \
        --pruning-config 'plan={"method":"replay","filter_layer":3,"keep":10,"exit_layer":6}'
    python -m llava.eval.bench --model-path playground/checkpoints/llava-tiny --batch-size 8 \
        --pruning-config playground/checkpoints/llava-tiny/pruning.json

A shape is the decoder of a published model with random weights: nothing is downloaded, and the time is the same.
Dense is transformers' own model with SDPA, untouched. Dense and all configs take turns, round after round; figures are
medians over rounds with their range. docs/performance.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from llava.eval.runner.answering import dense_trace
from llava.eval.timing import BenchError
from llava.eval.timing.described import heading, machine, settings
from llava.eval.timing.figures import costs_more, figures
from llava.eval.timing.fire import Fire, calibrate, check, fires
from llava.eval.timing.questions import QUESTION_TOKENS, bench_questions, print_questions, questions_heading
from llava.eval.timing.replayed import measures, replayed
from llava.eval.timing.rounds import Run, guarded, peak_on_cpu, run_once, take_turns
from llava.eval.timing.shapes import SHAPES, sharpen
from llava.eval.timing.subject import Subject, loaded_subject, random_subject
from llava.eval.timing.tables import print_result
from llava.model.checkpoint import find_source
from llava.model.layouts import read_layout
from llava.model.preflight import resolve
from llava.model.pruning import PruningConfig, PruningTrace
from llava.model.pruning.graphs import LayerGraphs
from llava.model.pruning.prefix_cache import CACHE_BYTES
from llava.utils import pick_device, pick_dtype

DENSE = "dense"
PROMPT_TOKENS = 64
REPLAY = " without probing"

EPILOG = """the last line of the output is JSON: "dense" and, by name, "configs", each with prefill_ms,
decode_ms_per_token, vision_ms, peak_bytes, kv_bytes, flops, ceiling, speedup, efficiency, probe_share, probe_ms (and
a …_range beside what varies), tokens_per_layer and plans; "settings", "machine" and "warnings". With --questions:
"questions" by name, each with questions_per_second, questions_per_second_reuse, gain_reuse, gain_pruning, gain """


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything that `args` asks for; raises `ValueError` with one line for what cannot be done."""
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    configs = named(args.pruning_config)
    layers = _check(args, configs, device)
    if args.questions is not None:
        return bench_questions(args, configs, layers, device, dtype)
    subject = guarded("the model", lambda: _subject(args, layers, device, dtype))
    if args.cuda_graphs:
        subject = replace(subject, graphs=LayerGraphs())
    fired = _fire(args, configs, subject)
    configs |= fired

    def run(name: str, config: PruningConfig | None) -> Run:
        return guarded(_what(name, args), lambda: run_once(subject, config, args.new_tokens))

    warm = take_turns(_same({DENSE: None, **configs}), 1, run, "warming up")
    traces = {name: warm[name][0].traces for name in configs}
    dense = [dense_trace(subject.shape, dtype.itemsize, *size) for size in subject.sizes]
    makers = _same({DENSE: None})
    for name, config in configs.items():
        makers |= _same({name: config})
        if measures(config):
            makers[name + REPLAY] = lambda found=traces[name]: replayed(found)
    peaks = dict.fromkeys([DENSE, *configs])
    if device.type == "cpu":
        for name in peaks:
            peaks[name] = guarded(_what(name, args), lambda name=name: peak_on_cpu(subject, makers[name](), 2))
    runs = take_turns(makers, args.repeats, run, "in turn")
    result = {
        DENSE: figures(runs[DENSE], runs[DENSE], dense, peak=peaks[DENSE]),
        "configs": {
            name: {"config": config.to_dict()}
            | figures(runs[DENSE], runs[name], traces[name], runs.get(name + REPLAY), peaks[name])
            for name, config in configs.items()
        },
    }
    result["warnings"] = [
        line
        for name, found in result["configs"].items()
        for line in costs_more(name, found, result[DENSE]) + _changed(name, traces[name], runs)
    ]
    return result | {"settings": settings(args, subject, dtype, fired), "machine": machine(device)}


def named(texts: Sequence[str]) -> dict[str, PruningConfig]:
    """Read `NAME=CONFIG` or CONFIG, JSON text or a `.json` path; without a name the file's or the method's.

    Raises `BenchError` for a name that is taken, `ValueError` as `PruningConfig.from_json` does.
    """
    configs: dict[str, PruningConfig] = {}
    for text in texts:
        given = re.match(r"([^={\[\"]+)=", text)
        source = text[given.end() :] if given else text
        config = PruningConfig.from_json(source)
        name = given[1] if given else Path(source).stem if source.strip().endswith(".json") else config.method
        if name == DENSE or name in configs:
            raise BenchError(f"--pruning-config: the name {name!r} is taken; write NAME={source[:60]}")
        configs[name] = config
    return configs


def _check(args: argparse.Namespace, configs: dict[str, PruningConfig], device: torch.device) -> int:
    """Raise for what can be seen to fail before a model is built; return the decoder's number of layers."""
    visual = None
    if args.shape is None:
        for option in ("num_layers", "vision"):
            if getattr(args, option):
                raise BenchError(f"--{option.replace('_', '-')} is for --shape; a loaded model is as it is")
        source = find_source(os.path.expanduser(args.model_path), "--model-path", {})
        layout = read_layout(source.folder)
        layers = layout.layers
    else:
        shape = SHAPES[args.shape]
        layers, visual = args.num_layers or shape.decoder.layers, args.images * shape.visual_tokens
        if args.vision and shape.clip is None:
            raise BenchError(f"--vision: the vision tower of {args.shape} is not a CLIP; leave it out")
        if args.image_file is not None:
            raise BenchError("--image-file is for --model-path; random weights look at noise")
        if args.prompt_tokens is not None and args.prompt_tokens < 2:
            raise BenchError(f"--prompt-tokens must be at least 2, got {args.prompt_tokens}")
    if args.image_file is not None and not Path(args.image_file).is_file():
        raise BenchError(f"--image-file {args.image_file!r} is not a file")
    for name, config in configs.items():
        try:
            if args.shape is None:
                resolve(config, source, layout)
            else:
                config.resolved(layers).check_layers(layers)
        except ValueError as error:
            raise BenchError(f"config {name!r}: {error}") from None
        if args.shape is not None and not args.vision and any(stage.reads_vision for stage in config.stages):
            raise BenchError(f"config {name!r} reads the image encoder; give --vision")
    if args.cuda_graphs and device.type != "cuda":
        raise BenchError(f"--cuda-graphs needs a CUDA device, this run is on {device}")
    if args.cuda_graphs and args.questions is not None:
        raise BenchError("--cuda-graphs does not go with --questions: prompts that reuse a prefix are not recorded")
    if args.questions is not None:
        for option in ("fire", "vision"):
            if getattr(args, option):
                raise BenchError(f"--{option} does not go with --questions, which measures what questions share")
    if args.fire is not None:
        asked = {name: config for name, config in configs.items() if fires(config)}
        if not asked:
            raise BenchError("--fire needs a --pruning-config of method 'visipruner' with 'middle' in its mode")
        for name, config in asked.items():
            check(name, config, args.fire, layers, args.fire.keep if visual is None else visual)
    return layers


def _subject(args: argparse.Namespace, layers: int, device: torch.device, dtype: torch.dtype) -> Subject:
    common = {"batch_size": args.batch_size, "images": args.images, "seed": args.seed}
    if args.shape is None:
        more = {"prompt_tokens": args.prompt_tokens, "new_tokens": args.new_tokens, "image_file": args.image_file}
        return loaded_subject(os.path.expanduser(args.model_path), device, dtype, **common, **more)
    prompt_tokens = PROMPT_TOKENS if args.prompt_tokens is None else args.prompt_tokens
    more = {"prompt_tokens": prompt_tokens, "vision": args.vision}
    return random_subject(SHAPES[args.shape], layers, device, dtype, **common, **more)


def _fire(args: argparse.Namespace, configs: dict[str, PruningConfig], subject: Subject) -> dict[str, PruningConfig]:
    """Calibrate the configs that `--fire` is for, on random weights that make it possible."""
    if args.fire is None:
        return {}
    if subject.random:
        sharpen(subject.decoder.layers, args.fire.layer)
    return {
        name: guarded(_what(name, args), lambda name=name, config=config: calibrate(name, config, args.fire, subject))
        for name, config in configs.items()
        if fires(config)
    }


def _what(name: str, args: argparse.Namespace) -> str:
    return f"config {name!r} with batch size {args.batch_size}"


def _same(configs: dict[str, PruningConfig | None]) -> dict[str, Callable[[], PruningConfig | None]]:
    return {name: lambda config=config: config for name, config in configs.items()}


def _changed(name: str, traces: Sequence[PruningTrace], runs: dict[str, list[Run]]) -> list[str]:
    """Say so where a run did not decide as the warm-up did, whose traces the figures are made of."""
    expected = [trace.tokens_per_layer for trace in traces]
    same = [
        [trace.tokens_per_layer for trace in run.traces] == expected for run in runs[name] + runs.get(name + REPLAY, [])
    ]
    if all(same):
        return []
    return [f"{name}: {same.count(False)} of {len(same)} runs pruned other tokens than the first; FLOPs are its own"]


def _some(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _fire_at(text: str) -> Fire:
    return Fire.parse(text)


_some.__name__, _fire_at.__name__ = "number ≥ 1", "LAYER:KEEP[:EXIT], KEEP ≥ 1 and EXIT ≥ LAYER + 2,"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.bench",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model-path", help="a checkpoint, as everywhere else")
    which.add_argument("--shape", choices=SHAPES, help="random weights with a published model's dimensions")
    add("--num-layers", type=_some, metavar="N", help="layers of a --shape (default: the model's)")
    add("--vision", action="store_true", help="with --shape: a random CLIP tower runs, too; else tokens are random")
    add("--dtype", default="auto", help="float32, float16 or bfloat16 (default: float32 on CPU, else float16)")
    add("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N")
    add(
        "--pruning-config",
        action="append",
        default=[],
        metavar="[NAME=]CONFIG",
        help="JSON or a path to a .json; any number of them",
    )
    add(
        "--fire",
        type=_fire_at,
        metavar="LAYER:KEEP[:EXIT]",
        help="choose VisiPruner's thresholds on these prompts, so that LAYER is the filter layer, about KEEP visual "
        "tokens stay, and EXIT is the first layer without any",
    )
    add("--batch-size", type=_some, default=1, metavar="N", help="prompts at once (default 1)")
    add("--images", type=_some, default=1, metavar="N", help="of a prompt (default 1)")
    add("--image-file", help="with --model-path: the image to show (default: noise)")
    add(
        "--prompt-tokens",
        type=_some,
        metavar="N",
        help=f"text tokens of a prompt (default {PROMPT_TOKENS}; of a loaded model, its format and a short question)",
    )
    add(
        "--questions",
        type=_some,
        metavar="N",
        help="instead: ask N questions about one image, --batch-size at a time, and say how many a second with and "
        f"without reuse of what they have in common (--shape: {QUESTION_TOKENS} tokens each)",
    )
    add(
        "--prefix-cache-bytes",
        type=int,
        default=CACHE_BYTES,
        metavar="BYTES",
        help="with --questions: memory for what is reused (default 2 GiB)",
    )
    add(
        "--cuda-graphs",
        action="store_true",
        help="pruned runs replay recorded layers where one prompt's few tokens are left (--batch-size 1, CUDA)",
    )
    add("--new-tokens", type=_some, default=16, metavar="N", help="generated by each prompt (default 16)")
    add("--repeats", type=_some, default=5, metavar="N", help="rounds after the warm-up (default 5)")
    add("--seed", type=int, default=0, help="of random weights and prompts (default 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        result = bench(args)
    except KeyboardInterrupt:
        print("interrupted; nothing was measured to the end", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    console = Console(width=max(150, Console().width), highlight=False)
    if args.questions is not None:
        print(questions_heading(result["settings"], result["machine"]) + "\n")
        print_questions(result["questions"], console)
        print(json.dumps(result, separators=(",", ":")))
        return 0
    print(heading(result["settings"], result["machine"]) + "\n")
    print_result(result, console)
    print(json.dumps(result, separators=(",", ":")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
