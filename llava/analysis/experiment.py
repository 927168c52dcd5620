"""The experiments of VisiPruner's analysis (arXiv 2510.17205) as commands: a CSV, a picture and a run file each."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llava.conversation import conv_templates
from llava.eval.benchmarks import BENCHMARKS, find_benchmark
from llava.eval.model_vqa_loader import Parser, number
from llava.eval.runner.jobs import check_files
from llava.mm_utils import get_model_name_from_path
from llava.model.checkpoint import find_source
from llava.model.layouts import read_layout
from llava.model.pruning import PruningConfig
from llava.model.pruning.method import scaled_boundary

from .experiments import EXPERIMENTS, Setup
from .experiments.asking import Asker
from .experiments.grid import DEFAULT_GRID
from .experiments.plan import Row, default_windows, layers_text
from .experiments.report import write_report
from .experiments.running import check, run

PAPER = {"mode": ["shallow", "middle", "deep"], "layer_threshold": 0.995, "tokens_threshold": 0.2}
ALL = "all"
_LIST = "\n".join(f"  {name:<16}{one.title} ({one.source})" for name, one in EXPERIMENTS.items())
EPILOG = f"""
experiments:
{_LIST}
  {ALL:<16}all of them, and one report: a cross-modal map that can be laid beside another model's

examples:
  python -m llava.tiny.benchmarks
  python -m llava.analysis.experiment windows --model-path playground/checkpoints/llava-tiny \\
      --benchmark gqa_mini --limit 100 --batch-size 16
  python -m llava.analysis.experiment grid --model-path liuhaotian/llava-v1.5-7b --benchmark gqa \\
      --grid layer_threshold=0.99,0.995,0.999 --grid exit_threshold=0.99,0.999

Every cell of an experiment is a run of the evaluation loader; what is answered already is not asked again, so that an
interrupted command, given again, goes on. OUT gets NAME.csv, NAME.png, NAME.run.json and the answers; columns: what is
varied, the benchmark's score, agreement with dense (percent of equal answers, Wilson's 95% interval) and cost as
percent of dense. Stages follow the paper's layers of 32, scaled with depth, unless --windows says otherwise. The last
line of output is one JSON object. Exit status: 0, 1 after one line on stderr, 2 for a wrong command line.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog="python -m llava.analysis.experiment",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", choices=[*EXPERIMENTS, ALL], metavar="NAME", help="an experiment of the list below, or all")
    add("--model-path", required=True, help="checkpoint folder or hub name; docs/models.md lists the known models")
    add("--model-base", help="base model of a projector-only checkpoint")
    add("--benchmark", required=True, help=f"one of {', '.join(BENCHMARKS)}, or a folder in the format of one")
    add("--data-dir", default="playground/data/eval", help="folder of the benchmarks (default playground/data/eval)")
    add("--out", type=Path, help="folder to write to (default runs/experiments/MODEL/BENCHMARK)")
    add("--limit", type=number(int, 1), help="ask only the first questions of the benchmark")
    add("--batch-size", type=number(int, 1), default=8, help="questions a batch (default 8)")
    add("--max_new_tokens", type=number(int, 1), help="longest answer in tokens (default: the benchmark's)")
    add("--layer", type=number(int, 0), help="layer that selection and critical measure (default: 15 of 32, scaled)")
    add("--keep", type=number(int, 1), default=10, help="visual tokens they keep, or disturb (default 10)")
    add("--step", type=number(int, 1), help="a sweep visits every STEP-th layer (default: at most 16 to 31 layers)")
    add(
        "--windows",
        type=windows,
        metavar="A-B,C-D,E-F",
        help="shallow, middle and deep layers, ends included (default: 1–8, 9–15 and 27–32 of 32, scaled)",
    )
    add("--pruning-config", help="config of exits and grid: JSON or a .json (default: the checkpoint's pruning.json)")
    add(
        "--grid",
        action="append",
        type=grid_values,
        metavar="KEY=V1,V2",
        help="a key of the config and its values; again for more keys (default: the paper's two thresholds)",
    )
    add("--conv-mode", choices=list(conv_templates), help="prompt format of LLaVA's original layout")
    add("--device", default="auto", help="auto (default: CUDA, MPS, CPU in this order), cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", help="float32, float16, bfloat16; auto (default) is float32 on CPU, else float16")
    return parser


def windows(text: str) -> dict[str, tuple[int, ...]]:
    """Read --windows."""
    parts = text.split(",")
    try:
        ends = [tuple(map(int, part.split("-"))) for part in parts]
        found = [tuple(range(first, last + 1)) for first, last in ends]
    except ValueError:
        found = []
    if len(found) != 3 or not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not three windows of layers such as 0-3,4-7,8-11")
    return dict(zip(("shallow", "middle", "deep"), found, strict=True))


def grid_values(text: str) -> tuple[str, tuple[float, ...]]:
    """Read one --grid."""
    key, equals, values = text.partition("=")
    try:
        found = tuple(json.loads(f"[{values}]"))
    except ValueError:
        found = ()
    if not equals or not found or not all(isinstance(value, int | float) for value in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=NUMBER,NUMBER such as tokens_threshold=0.1,0.2")
    return key, found


def make_setup(args: argparse.Namespace) -> Setup:
    """Read the model's depth and fill in what was left open; `ValueError` (one line) for what does not fit it."""
    source = find_source(os.path.expanduser(args.model_path), "--model-path", {})
    layers = read_layout(source.folder).layers
    stages = args.windows or default_windows(layers)
    for name, window in stages.items():
        if window[-1] >= layers:
            raise ValueError(f"--windows: {name} ends at layer {window[-1]}, but the model has {layers} layers")
    layer = scaled_boundary(15, layers) if args.layer is None else args.layer
    if layer >= layers - 1:
        raise ValueError(f"--layer {layer}: the model has {layers} layers, and one must follow (at most {layers - 2})")
    beside = source.folder / "pruning.json"
    config = args.pruning_config or (beside if beside.is_file() else PAPER)
    return Setup(
        layers=layers,
        visual_tokens=0,
        windows=stages,
        layer=layer,
        keep=args.keep,
        step=args.step or max(1, layers // 16),
        config=PruningConfig.of(config).to_dict(),
        grid=dict(args.grid or DEFAULT_GRID),
    )


def run_experiments(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """Run what `args` asks for; returns the CSV's rows by experiment, and the files.

    Raises `ValueError` (one line) for bad input, and what loading and running raises.
    """
    chosen = list(EXPERIMENTS.values()) if args.name == ALL else [EXPERIMENTS[args.name]]
    benchmark = find_benchmark(args.benchmark)
    check_files(benchmark, benchmark.at(args.data_dir))
    setup = make_setup(args)
    check(chosen, setup)
    model = get_model_name_from_path(args.model_path)
    out = args.out or Path("runs") / "experiments" / model / benchmark.name
    out.mkdir(parents=True, exist_ok=True)
    own = ("model_path", "model_base", "limit", "batch_size", "max_new_tokens", "conv_mode", "device", "dtype")
    asker = Asker(benchmark, args.data_dir, out, {key: getattr(args, key) for key in own}, command)
    tables: dict[str, list[Row]] = {}
    for experiment in chosen:
        tables[experiment.name] = run(experiment, setup, asker, out, command)
    files = [str(out / f"{name}.{end}") for name in tables for end in ("csv", "png", "run.json")]
    if args.name == ALL:
        subject = f"{model}, {benchmark.title}" + (f", first {args.limit} questions" if args.limit else "")
        files.append(str(write_report(out, chosen, tables, setup, subject)))
    stages = {name: layers_text(window) for name, window in setup.windows.items()}
    return {
        "model_path": str(args.model_path),
        "benchmark": benchmark.name,
        "windows": stages,
        "rows": tables,
        "files": files,
    }


SHOWN = ("score", "agreement", "flops_share", "kv_share")


def print_rows(name: str, rows: Sequence[Row]) -> None:
    """Print an experiment's rows for people."""
    columns = list(rows[0])
    if "score" in columns:
        columns = [*columns[: columns.index("score")], *SHOWN]
    table = Table(title=name, title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(_text(row[column]) for column in columns))
    Console(width=max(120, Console().width), highlight=False).print(table)


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(words)
    command = shlex.join(["python", "-m", "llava.analysis.experiment", *words])
    try:
        found = run_experiments(args, command)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    for name, rows in found["rows"].items():
        print_rows(name, rows)
    print(*found["files"][-1:] if args.name == ALL else found["files"], sep="\n")
    print(json.dumps({key: value for key, value in found.items() if key != "rows"}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
