"""The experiments of VisiPruner's analysis (arXiv 2510.17205) as commands: a CSV, a plot and a run file each."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from llava.eval.results.plots import PlotOptions

from .paper_experiments import DEFAULT_GRID, EXPERIMENTS, Experiment, Setup, default_windows, layers_text, scaled

if TYPE_CHECKING:
    from llava.eval.benchmarks import Benchmark
    from llava.eval.runner.evaluator import Evaluator
    from llava.eval.runner.run import Run

    from .experiment_figures import Row

PROG = "python -m llava.analysis.experiment"
ALL, DENSE = "all", "dense"
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

Every cell of an experiment is an evaluation run. The same command continues an interrupted one: what is answered is not
asked again. OUT gets NAME.csv, NAME.png, NAME.run.json and the answers. Columns: what is varied, the benchmark's score,
agreement with dense (percent of equal answers, Wilson's 95% interval) and cost in percent of dense. Stages follow the
paper's layers of 32, scaled with depth, unless --windows says otherwise.
"""


def windows(text: str) -> dict[str, tuple[int, ...]]:
    """Read --windows: A-B,C-D,E-F."""
    try:
        ends = [tuple(map(int, part.split("-"))) for part in text.split(",")]
        stages = [tuple(range(first, last + 1)) for first, last in ends]
    except ValueError:
        stages = []
    if len(stages) != 3 or not all(stages):
        raise ValueError(f"{text!r} is not three windows of layers such as 0-3,4-7,8-11")
    return dict(zip(("shallow", "middle", "deep"), stages, strict=True))


def grid_values(text: str) -> tuple[str, tuple[float, ...]]:
    """Read one --grid: KEY=V1,V2."""
    key, equals, values = text.partition("=")
    try:
        numbers = tuple(json.loads(f"[{values}]"))
    except ValueError:
        numbers = ()
    if not equals or not numbers or not all(isinstance(value, int | float) for value in numbers):
        raise ValueError(f"{text!r} is not KEY=NUMBER,NUMBER such as tokens_threshold=0.1,0.2")
    return key, numbers


@dataclass(kw_only=True)
class Options(ModelOptions, GenerationOptions, PlotOptions, OutputOptions):
    """Options of the command."""

    name: str = option(
        help="an experiment of the list below, or all", positional=True, choices=[*EXPERIMENTS, ALL], metavar="NAME"
    )
    benchmark: str = option(help="a benchmark, a folder in the format of one, or file.py:NAME")
    data_dir: Path = option(
        Path("playground/data/eval"), help="folder of the benchmarks (default playground/data/eval)"
    )
    out: Path | None = option(None, help="folder to write to (default runs/experiments/MODEL/BENCHMARK)")
    pruning_config: str | None = option(
        None,
        help="config of exits and grid: JSON or a .json file (default: the checkpoint's pruning.json)",
        metavar="JSON|FILE",
    )
    layer: int | None = option(
        None, help="layer that selection and critical measure (default: 15 of 32, scaled)", type=number(int, 0)
    )
    keep: int = option(10, help="visual tokens that they keep, or disturb (default 10)", type=number(int, 1))
    step: int | None = option(
        None, help="a sweep visits every STEP-th layer (default: at most 16 to 31 layers)", type=number(int, 1)
    )
    windows: dict | None = option(
        None,
        help="shallow, middle and deep layers, ends included (default: 1–8, 9–15 and 27–32 of 32, scaled)",
        type=windows,
        metavar="A-B,C-D,E-F",
    )
    grid: list = option(
        [],
        help="a key of the config and its values; again for more keys (default: the paper's two thresholds)",
        type=grid_values,
        metavar="KEY=V1,V2",
        repeated=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(Options, work, argv, prog=PROG, description=__doc__, epilog=EPILOG)


def work(options: Options) -> None:
    """Run experiments, write their files and print their rows; `UserError` before the model loads for bad input."""
    from llava.eval.benchmarks import find_benchmark
    from llava.eval.runner.evaluator import Evaluator
    from llava.mm_utils import get_model_name_from_path

    from .experiment_report import table_of, write_report

    chosen = list(EXPERIMENTS.values()) if options.name == ALL else [EXPERIMENTS[options.name]]
    benchmark = find_benchmark(options.benchmark)
    setup = make_setup(options)
    model = get_model_name_from_path(options.model_path)
    out = options.out or Path("runs") / "experiments" / model / benchmark.name
    runs = Runs(Evaluator(options, command_of(PROG, options)), options, benchmark, out)
    runs.check(chosen, setup)
    tables = {experiment.name: run_experiment(experiment, setup, runs, options) for experiment in chosen}
    files = [str(out / f"{name}.{end}") for name in tables for end in ("csv", options.format, "run.json")]
    if options.name == ALL:
        files.append(str(write_report(out, chosen, tables, setup, runs.subject, options)))
    for name, rows in tables.items():
        table_of(rows, ("accuracy", "visual_kept")).print(name)
    print(*files[-1:] if options.name == ALL else files, sep="\n")
    stages = {name: layers_text(window) for name, window in setup.windows.items()}
    record = {"model_path": options.model_path, "benchmark": benchmark.name, "windows": stages, "files": files}
    print_json(record, options)


def make_setup(options: Options) -> Setup:
    """Read the model's depth and fill in open settings; `UserError` for settings that do not fit the model."""
    from llava.model.preflight import check_model, default_config
    from llava.model.pruning import PruningConfig

    checked = check_model(options, None)
    layers = checked.layout.layers
    stages = options.windows or default_windows(layers)
    for name, window in stages.items():
        if window[-1] >= layers:
            raise UserError(f"--windows: {name} ends at layer {window[-1]}, but the model has {layers} layers")
    layer = scaled(15, layers) if options.layer is None else options.layer
    if layer >= layers - 1:
        raise UserError(f"--layer {layer}: the model has {layers} layers, and one must follow (at most {layers - 2})")
    if options.pruning_config == "none":
        raise UserError("--pruning-config none: exits and grid vary a config; leave the option out for the default one")
    config = PruningConfig.of(options.pruning_config or default_config(checked.source.folder))
    return Setup(
        layers=layers,
        visual_tokens=1,
        windows=stages,
        layer=layer,
        keep=options.keep,
        step=options.step or max(1, layers // 16),
        config=config.to_dict(),
        grid=dict(options.grid or DEFAULT_GRID),
    )


class Runs:
    """The runs of all cells on one benchmark. The model is loaded once, and only if an answer is missing.

    Answers are in OUT/answers/BENCHMARK/NAME.jsonl, in a folder of their own for each --limit. The name is made of the
    config, so that experiments share the runs that they have in common.
    """

    def __init__(self, evaluator: Evaluator, options: Options, benchmark: Benchmark, out: Path):
        self.evaluator, self.benchmark, self.out = evaluator, benchmark, out
        self.folder = benchmark.at(options.data_dir)
        limit = options.limit
        self.answers = out / ("answers" if limit is None else f"answers-first-{limit}") / benchmark.name
        first = "" if limit is None else f", first {limit} questions"
        self.subject = f"{Path(options.model_path).name}, {benchmark.title}{first}"
        self._runs: dict[str, Run] = {}

    def plan(self, config: Mapping[str, Any] | None) -> Any:
        """Check the run of one config, as `Evaluator.plan` does."""
        from llava.model.pruning import PruningConfig

        answers = self.answers / f"{name_of(config)}.jsonl"
        return self.evaluator.plan(
            self.benchmark, self.folder, answers, None if config is None else PruningConfig.of(config)
        )

    def check(self, experiments: Sequence[Experiment], setup: Setup) -> None:
        """Plan every cell; `UserError` for what cannot run, before the model loads."""
        self.plan(None)
        for experiment in experiments:
            for cell in experiment.cells(setup)[1:]:
                try:
                    self.plan(cell.config)
                except ValueError as error:
                    raise UserError(f"experiment {experiment.name!r}: {error}") from None

    def run(self, config: Mapping[str, Any] | None) -> Run:
        """Answer the benchmark under a config, None for dense."""
        name = name_of(config)
        if name not in self._runs:
            self._runs[name] = self.evaluator.run(self.plan(config))
        return self._runs[name]

    def measures(self, config: Mapping[str, Any] | None) -> Row:
        """Return the columns that every experiment has: score, agreement with dense, cost in percent of dense.

        `flops_share` and `kv_share` count all tokens, `visual_flops_share` visual ones. A mask drops no token, and
        saves next to nothing.
        """
        run = self.run(config)
        same, costs, scores = run.agreement(self.run(None)), run.costs, run.scores or {}
        row = {
            "score": scores.get(scores.get("figure")),
            "accuracy": scores.get("accuracy"),
            "questions": same.count,
            "agreement": same.percent,
            "agreement_low": same.low,
            "agreement_high": same.high,
            "flops_share": 100 * costs.flops_share,
            "visual_flops_share": 100 * costs.visual_flops_share,
            "kv_share": 100 * costs.kv_share,
            "tokens_per_layer": costs.mean_tokens,
            "visual_kept": costs.mean_kept,
        }
        row = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        return row | {"answers": str(run.answers_file.relative_to(self.out))}

    def fewest_visual_tokens(self) -> int:
        """Return the smallest number of visual tokens among prompts with an image; `UserError` if there is none."""
        counts = [trace["visual_tokens"] for trace in self.run(None).traces.values() if trace["visual_tokens"]]
        if not counts:
            raise UserError(f"no prompt of {self.benchmark.title} has visual tokens: there is nothing to mask")
        return min(counts)


def name_of(config: Mapping[str, Any] | None) -> str:
    """Return the name of a config's answers: `dense`, or the method and a digest of all its settings."""
    from llava.model.pruning import PruningConfig

    if config is None:
        return DENSE
    settings = PruningConfig.of(config).to_dict()
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return f"{settings['method']}-{digest}"


def run_experiment(experiment: Experiment, setup: Setup, runs: Runs, plots: PlotOptions) -> list[Row]:
    """Run an experiment's cells, write OUT/NAME.csv, its plot and NAME.run.json, and return the CSV's rows."""
    from tqdm import tqdm

    from llava.eval.results.table import csv_text
    from llava.eval.runner.runfile import versions, write_run_file

    setup = replace(setup, visual_tokens=runs.fewest_visual_tokens())
    cells = experiment.cells(setup)
    dense = runs.run(None)
    record = {
        "experiment": experiment.name,
        "command": runs.evaluator.command,
        "settings": dense.settings | {"benchmark": runs.benchmark.name, "limit": dense.record.get("limit")},
        "setup": asdict(setup),
        "versions": versions(),
    }
    run_file = runs.out / f"{experiment.name}.run.json"
    write_run_file(run_file, {"state": "running"} | record)
    rows = []
    for cell in tqdm(cells, desc=experiment.name, unit="cell", dynamic_ncols=True):
        rows.append({**cell.varied, **runs.measures(cell.config)})
    table = rows
    if experiment.table is not None:
        table = experiment.table(rows, [runs.run(cell.config).totals for cell in cells])
    (runs.out / f"{experiment.name}.csv").write_text(csv_text(table), encoding="utf-8")
    figure = experiment.draw(table)
    figure.suptitle(f"{experiment.title}\n{runs.subject}", fontsize=10)
    plots.save(figure, runs.out / experiment.name)
    configs = [{"config": cell.config and dict(cell.config)} | row for cell, row in zip(cells, rows, strict=True)]
    write_run_file(run_file, {"state": "finished"} | record | {"cells": configs})
    return table


if __name__ == "__main__":
    sys.exit(main())
