"""Layers that need the image: accuracy with text→visual attention masked in some layers, as a table and a plot.

    python -m llava.tiny.masks [--model-path CHECKPOINT ...] [--scenes 24] [--out runs/masks]

Three experiments: layers 0 to k-1 masked (from the shallow end), layers k to the last (from the deep end), two layers
in a row. A model with VisiPruner's three stages loses nothing at either end and much in the middle. Text rows of a
masked layer read no visual token, in the prompt and while decoding; nothing is dropped. OUT/masks.csv holds one row per
checkpoint and mask, accuracy by kind of question and their mean; OUT/masks.png the means.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from llava.analysis.paper_experiments import masking_windows
from llava.cli import ModelOptions, UserError, number, option, run_command
from llava.eval.results.plots import PlotOptions
from llava.eval.results.table import csv_text
from llava.tiny.accuracy import CHECKPOINT, measure, summarize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from llava.model.loaded import LoadedModel

EXPERIMENTS = {
    "shallow": "layers 0 to k-1 masked",
    "deep": "layers k to the last masked",
    "window": "layers k and k+1 masked",
}


def experiments(layers: int) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Yield (experiment, k, masked layers) of every run for a decoder of `layers` layers."""
    names = dict(zip(("first", "last", "pair"), EXPERIMENTS, strict=True))
    for window, k, masked in masking_windows(layers):
        yield names[window], k, tuple(masked)


def run(loaded: LoadedModel, name: str, scenes: int) -> list[dict]:
    """Measure one checkpoint unmasked (experiment "none") and under every mask; one row each, with a bar on stderr."""
    plans = [("none", 0, ()), *experiments(loaded.model.config.num_hidden_layers)]
    rows = []
    for experiment, k, layers in tqdm(plans, desc=name, unit="mask"):
        options = {"pruning_config": {"method": "mask", "layers": layers}} if layers else {}
        summary = summarize(measure(loaded, scenes, **options))
        kinds = {kind: row["accuracy"] for kind, row in summary["kinds"].items()}
        about = {"checkpoint": name, "experiment": experiment, "k": k, "masked": " ".join(map(str, layers))}
        rows.append(about | {"mean": summary["mean"]} | kinds)
    return rows


def draw(rows: list[dict]) -> Figure:
    """Draw the means, one chart per experiment, one line per checkpoint, dashed without a mask."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    charts = figure.subplots(1, len(EXPERIMENTS), sharey=True)
    names = list(dict.fromkeys(row["checkpoint"] for row in rows))
    for chart, (experiment, title) in zip(charts, EXPERIMENTS.items(), strict=True):
        for color, name in enumerate(names):
            mine = [row for row in rows if row["checkpoint"] == name]
            line = [row for row in mine if row["experiment"] == experiment]
            chart.plot([r["k"] for r in line], [r["mean"] for r in line], "o-", ms=3, color=f"C{color}", label=name)
            chart.axhline(mine[0]["mean"], color=f"C{color}", ls="--", lw=0.8)
        chart.set_title(title, fontsize=10)
        chart.set_xlabel("k")
        chart.set_ylim(0, 1.02)
    charts[0].set_ylabel("accuracy, mean of all kinds")
    charts[0].legend(fontsize=8)
    return figure


@dataclass(kw_only=True)
class Options(ModelOptions, PlotOptions):
    """Options of the command: checkpoints and number of scenes."""

    model_path: list[str] = option([CHECKPOINT], help="one or more checkpoints to compare", many=True)
    scenes: int = option(24, help="pictures, with about 24 questions each (default 24)", type=number(int, 1))
    out: Path = option(Path("runs/masks"), help="folder to write to (default runs/masks)")


def work(options: Options) -> None:
    """Measure every checkpoint under every mask."""
    from llava.model.loaded import LoadedModel
    from llava.model.preflight import check_model

    each = [replace(options, model_path=path) for path in options.model_path]
    names = [Path(path).name for path in options.model_path]
    if len(set(names)) < len(names):
        raise UserError(f"--model-path: the folders' names label the lines and must differ, got {' '.join(names)}")
    for one in each:
        check_model(one, None)
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, one in zip(names, each, strict=True):
        rows += run(LoadedModel.from_path(one), name, options.scenes)
    (options.out / "masks.csv").write_text(csv_text(rows), encoding="utf-8")
    picture = options.save(draw(rows), options.out / "masks")
    print(f"wrote {options.out / 'masks.csv'} and {picture}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog="python -m llava.tiny.masks", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
