"""One bench from its options to its figures: checks, the model, forced plans, runs in turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llava.cli import UserError
from llava.eval.runner.generate import dense_trace
from llava.model.images import read_image
from llava.model.preflight import check_model
from llava.model.pruning import PruningConfig
from llava.model.pruning.graphs import LayerGraphs
from llava.utils import pick_device, pick_dtype

from . import force_plan, shared_image, tables, training
from .figures import changed_decisions, figures, warnings_of
from .options import BenchOptions
from .rounds import Replayed, Run, measures, memory_for, peak_on_cpu, run_once, take_turns
from .shapes import SHAPES, sharpen
from .video import video_workload
from .workload import Workload, loaded_workload, random_workload

DENSE = "dense"
REPLAY = " without probing"


def bench(options: BenchOptions) -> dict[str, Any]:
    """Run the bench that `options` describe; JSON-ready. `ValueError` (one line) for bad options."""
    options.check()
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    configs = named(options.pruning_config)
    check(options, configs, device)
    if options.train:
        return training.bench(options, configs, device, dtype)
    with memory_for("the model"):
        if options.shape is None:
            workload = loaded_workload(options, dtype)
        elif options.frames is not None:
            workload = video_workload(SHAPES[options.shape], options, device, dtype)
        else:
            workload = random_workload(SHAPES[options.shape], options, device, dtype)
    forced: dict[str, PruningConfig] = {}
    if options.questions_per_image is not None:
        with memory_for(f"{options.batch_size} prompts at once"):
            sizes = (options.prefix_cache, options.new_tokens, options.rounds)
            rows = shared_image.measure(workload, configs, *sizes)
        result = {"questions": rows | {name: rows[name] | {"config": configs[name].to_dict()} for name in configs}}
    else:
        workload = replace(workload, graphs=LayerGraphs()) if options.cuda_graphs else workload
        forced = force(options, configs, workload)
        result = measure(options, configs | forced, workload, dtype)
    about = {"settings": tables.settings(options, workload, dtype, forced), "machine": tables.machine(device)}
    return result | about


def measure(
    options: BenchOptions, configs: dict[str, PruningConfig], workload: Workload, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the figures of dense and of every config, and warnings where a config costs more than dense."""

    def run(name: str, config: PruningConfig | None) -> Run:
        with memory_for(_what(name, options)):
            return run_once(workload, config, options.new_tokens)

    warm = take_turns({DENSE: None, **configs}, 1, run, "warming up")
    traces = {name: warm[name][0].traces for name in configs}
    traces[DENSE] = [dense_trace(workload.shape, dtype.itemsize, *size) for size in workload.sizes]
    cells: dict[str, PruningConfig | None] = {DENSE: None}
    for name, config in configs.items():
        cells[name] = config
        if measures(config):
            cells[name + REPLAY] = Replayed.of_traces(traces[name])
    peaks = dict.fromkeys(cells)
    if workload.model.device.type == "cpu":
        for name in (DENSE, *configs):
            with memory_for(_what(name, options)):
                peaks[name] = peak_on_cpu(workload, cells[name], 2)
    runs = take_turns(cells, options.rounds, run)
    rows = {
        name: figures(runs[DENSE], runs[name], traces[name], runs.get(name + REPLAY), peaks[name])
        for name in (DENSE, *configs)
    }
    dense, warnings = rows.pop(DENSE), []
    for name, row in rows.items():
        warnings += warnings_of(name, row, dense)
        warnings += changed_decisions(name, traces[name], runs[name] + runs.get(name + REPLAY, []))
    rows = {name: {"config": configs[name].to_dict()} | row for name, row in rows.items()}
    return {DENSE: dense, "configs": rows, "warnings": warnings}


def named(texts: Sequence[str]) -> dict[str, PruningConfig]:
    """Read `NAME=CONFIG` or CONFIG, JSON text or a `.json` path; without a name the file's or the method's.

    Raises `UserError` for a name that is taken, `ValueError` as `PruningConfig.from_json` does.
    """
    configs: dict[str, PruningConfig] = {}
    for text in texts:
        given = re.match(r"([^={\[\"]+)=", text)
        source = text[given.end() :] if given else text
        if source.strip() == "none":  # dense, which always runs
            continue
        config = PruningConfig.from_json(source)
        name = given[1] if given else Path(source).stem if source.strip().endswith(".json") else config.method
        if name == DENSE or name in configs:
            raise UserError(f"--pruning-config: the name {name!r} is taken; write NAME={source[:60]}")
        configs[name] = config
    return configs


def check(options: BenchOptions, configs: dict[str, PruningConfig], device: torch.device) -> None:
    """Check model, image, configs and a forced plan before a model is built."""
    shape = None if options.shape is None else SHAPES[options.shape]
    if options.vision and shape.clip is None:
        raise UserError(f"--vision: the vision tower of {options.shape} is not a CLIP; leave it out")
    if options.cuda_graphs and device.type != "cuda":
        raise UserError(f"--cuda-graphs needs a CUDA device, this run is on {device}")
    if options.image_file is not None:
        read_image(options.image_file)
    layers = check_model(options, None).layout.layers if shape is None else options.num_layers or shape.decoder.layers
    for name, config in configs.items():
        try:
            if shape is None:
                check_model(options, config)
            else:
                config.resolved(layers).check_layers(layers)
        except ValueError as error:
            raise UserError(f"config {name!r}: {error}") from None
        if shape is not None and not options.vision and any(stage.reads_vision for stage in config.stages):
            raise UserError(f"config {name!r} reads the image encoder; give --vision")
    if options.force_plan is not None:
        able = {name: config for name, config in configs.items() if force_plan.can_be_forced(config)}
        if not able:
            raise UserError("--force-plan needs a --pruning-config of method 'visipruner' with 'middle' in its mode")
        visual = options.force_plan.keep if shape is None else options.images * shape.visual_tokens
        for name, config in able.items():
            force_plan.check(name, config, options.force_plan, layers, visual)


def force(options: BenchOptions, configs: dict[str, PruningConfig], workload: Workload) -> dict[str, PruningConfig]:
    """Return the configs that `--force-plan` applies to, with fitting thresholds; rescales random attention for it."""
    plan = options.force_plan
    if plan is None:
        return {}
    if workload.random:
        sharpen(workload.decoder.layers, plan.layer)
    forced = {}
    for name, config in configs.items():
        if force_plan.can_be_forced(config):
            with memory_for(_what(name, options)):
                forced[name] = force_plan.with_thresholds(name, config, plan, workload)
    return forced


def _what(name: str, options: BenchOptions) -> str:
    return f"config {name!r} with batch size {options.batch_size}"
