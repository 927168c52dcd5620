"""Running experiments: their cells asked one after the other; CSV, picture and run file written."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.eval.runner.runfile import versions, write_run_file
from llava.model.pruning import PruningConfig

from .asking import Asker
from .plan import Experiment, Row, Setup


def check(experiments: Sequence[Experiment], setup: Setup) -> None:
    """Raise `ValueError` for a cell whose config the model cannot run; nothing is loaded."""
    for experiment in experiments:
        for cell in experiment.cells(replace(setup, visual_tokens=1)):
            if cell.config is None:
                continue
            try:
                PruningConfig.from_dict(cell.config).check_layers(setup.layers)
            except ValueError as error:
                raise ValueError(f"experiment {experiment.name!r}: {error}") from None


def run(experiment: Experiment, setup: Setup, asker: Asker, out: Path, command: str) -> list[Row]:
    """Ask an experiment's cells, write `out/NAME.csv`, `.png` and `.run.json`, and return the CSV's rows."""
    setup = replace(setup, visual_tokens=asker.fewest_visual_tokens())
    cells = experiment.cells(setup)
    record = {
        "experiment": experiment.name,
        "command": command,
        "settings": asker.identity | {"benchmark": asker.benchmark.name, "limit": asker.settings.get("limit")},
        "setup": asdict(setup),
        "versions": versions(),
    }
    run_file = out / f"{experiment.name}.run.json"
    write_run_file(run_file, {"state": "running"} | record)
    rows = []
    for cell in tqdm(cells, desc=experiment.name, unit="cell", dynamic_ncols=True):
        rows.append({**cell.varied, **asker.measures(cell.config)})
    table = rows
    if experiment.table is not None:
        table = experiment.table(rows, [asker.ask(cell.config).totals for cell in cells])
    write_csv(out / f"{experiment.name}.csv", table)
    figure = experiment.draw(table)
    figure.suptitle(f"{experiment.title}\n{_subject(asker)}", fontsize=10)
    figure.savefig(out / f"{experiment.name}.png", dpi=110)
    configs = [{"config": cell.config and dict(cell.config)} | row for cell, row in zip(cells, rows, strict=True)]
    write_run_file(run_file, {"state": "finished"} | record | {"cells": configs})
    return table


def _subject(asker: Asker) -> str:
    limit = asker.settings.get("limit")
    part = "" if limit is None else f", first {limit} questions"
    return f"{Path(asker.settings['model_path']).name}, {asker.benchmark.title}{part}"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that have the same columns; a number that there is not stays empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_json(path: Path) -> dict[str, Any]:
    """Read a run file that `run` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
