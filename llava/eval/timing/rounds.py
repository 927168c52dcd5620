"""Timed runs in turn (dense, first config, second, …, again), so that machine drift affects all alike."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from llava.cli import UserError
from llava.eval.runner.timing import ForwardTimer
from llava.model.pruning import AttentionRule, KVRule, PromptState, PruningConfig, PruningTrace, Selection
from llava.model.pruning.methods import Replay

from .memory import CudaPeak, Peak, cpu_peak
from .workload import Workload

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """Measurements of one `generate`: milliseconds of the batch and per decoding step, peak bytes."""

    prefill: float
    decode: float | None
    vision: float
    peak: Peak | None
    traces: list[PruningTrace]


def run_once(workload: Workload, config: PruningConfig | None, new_tokens: int) -> Run:
    """Generate once, with a clock around the model's modules (`ForwardTimer`); None is the untouched model."""
    with torch.inference_mode(), workload.pruned(config) as session, ForwardTimer(workload.model) as timer:
        with _no_garbage_collection(), CudaPeak(workload.model.device, workload.decoder) as memory:
            workload.ask(new_tokens)
        spent = timer.take()
    return Run(
        prefill=spent.prefill,
        decode=spent.decode / spent.decode_steps if spent.decode_steps else None,
        vision=spent.vision,
        peak=None if memory.bytes is None else Peak(memory.bytes, memory.prefill),
        traces=[] if session is None else session.traces,
    )


def peak_on_cpu(workload: Workload, config: PruningConfig | None, new_tokens: int) -> Peak:
    """Return the peak bytes of prefill and decoding on a CPU, from a run that is not timed."""
    with torch.inference_mode(), workload.pruned(config):
        return cpu_peak(lambda: workload.ask(new_tokens), workload.decoder)


def take_turns(
    configs: Mapping[str, Any], rounds: int, run: Callable[[str, Any], T], label: str = "in turn"
) -> dict[str, list[T]]:
    """Call `run(name, config)` for every config once per round, in the given order; `rounds` results per name."""
    results: dict[str, list[T]] = {name: [] for name in configs}
    with tqdm(total=rounds * len(configs), unit="run", desc=label) as bar:
        for _ in range(rounds):
            for name, config in configs.items():
                results[name].append(run(name, config))
                bar.update()
    return results


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Turn out-of-memory in the block into a one-line `UserError` that names `what`."""
    try:
        yield
        return
    except torch.OutOfMemoryError:
        where = "the device's memory"
    except RuntimeError as error:  # what torch raises for it on a CPU
        if "allocate memory" not in str(error):
            raise
        where = "the machine's memory"
    raise UserError(f"{where} does not hold {what}; give a smaller --batch-size, or a half-precision --dtype")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage before the block, and none inside it."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class Replayed(PruningConfig):
    """Replays the decisions of a batch without measuring: one plan per prompt, in batch order.

    What probing costs is a method's time minus that of its replayed traces. Attention and cache rules belong to a
    config, not to a prompt: all plans have the same.
    """

    plans: tuple[Any, ...] = ()

    @classmethod
    def of_traces(cls, traces: Sequence[PruningTrace]) -> Replayed:
        """Return the config that repeats the traces of a batch."""
        return cls(plans=tuple(Replay(trace=trace.to_dict()) for trace in traces))

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when a plan does not fit a decoder of `num_layers` layers."""
        for plan in self.plans:
            plan.check_layers(num_layers)

    def attention(self, layer: int) -> AttentionRule:
        """As recorded."""
        return self.plans[0].attention(layer)

    def cached(self, layer: int) -> KVRule:
        """As recorded."""
        return self.plans[0].cached(layer)

    def select(self, layer: int, prompt: PromptState, measured: None) -> np.ndarray | Selection | None:
        """As the prompt's own plan says."""
        return self.plans[prompt.number % len(self.plans)].select(layer, prompt, measured)


def measures(config: PruningConfig) -> bool:
    """Whether a method measures anything, in its own stage or in the one before the decoder."""
    return any(type(stage).probe is not PruningConfig.probe for stage in config.stages)
