"""Runs in turn: dense, the first config, the second, …, and again, so that drift of the machine hits all of them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from tqdm import tqdm

from llava.eval.runner.timing import ForwardTimer
from llava.model.pruning import PruningConfig, PruningTrace

from . import BenchError
from .memory import CudaPeak, Peak, cpu_peak
from .subject import Subject

T = TypeVar("T")
Maker = Callable[[], "PruningConfig | None"]
"""Makes the config of one run; None is the untouched model."""


@dataclass(frozen=True)
class Run:
    """What one `generate` took: milliseconds of the whole batch, of one decoding step, and bytes at most."""

    prefill: float
    decode: float | None
    vision: float
    peak: Peak | None
    traces: list[PruningTrace]


def run_once(subject: Subject, config: PruningConfig | None, new_tokens: int) -> Run:
    """Generate once and look at the clock around the model's modules (`ForwardTimer`)."""
    with torch.inference_mode(), subject.pruned(config) as session, ForwardTimer(subject.model) as timer:
        with _quiet(), CudaPeak(subject.model.device, subject.decoder) as memory:
            subject.ask(new_tokens)
        spent = timer.take()
    return Run(
        prefill=spent.prefill,
        decode=spent.decode / spent.decode_steps if spent.decode_steps else None,
        vision=spent.vision,
        peak=None if memory.bytes is None else Peak(memory.bytes, memory.prefill),
        traces=[] if session is None else session.traces,
    )


def peak_on_cpu(subject: Subject, config: PruningConfig | None, new_tokens: int) -> Peak:
    """Bytes that prefill and decoding take at most on a CPU, from a run that is not timed."""
    with torch.inference_mode(), subject.pruned(config):
        return cpu_peak(lambda: subject.ask(new_tokens), subject.decoder)


def take_turns(
    makers: Mapping[str, Maker],
    repeats: int,
    run: Callable[[str, PruningConfig | None], Run],
    label: str = "in turn",
) -> dict[str, list[Run]]:
    """Call `run` with every name and config once a round, in the given order: `repeats` runs by name."""
    runs: dict[str, list[Run]] = {name: [] for name in makers}
    with tqdm(total=repeats * len(makers), unit="run", desc=label) as bar:
        for _ in range(repeats):
            for name, make in makers.items():
                runs[name].append(run(name, make()))
                bar.update()
    return runs


def guarded(what: str, call: Callable[[], T]) -> T:
    """Return what `call` does; `BenchError`, one line that names `what`, where memory does not hold it."""
    try:
        return call()
    except torch.OutOfMemoryError:
        where = "the device's memory"
    except RuntimeError as error:  # what torch raises for it on a CPU
        if "allocate memory" not in str(error):
            raise
        where = "the machine's memory"
    raise BenchError(f"{where} does not hold {what}; give a smaller --batch-size, or a half-precision --dtype")


@contextmanager
def _quiet() -> Iterator[None]:
    """Collect garbage before, and none in the middle."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
