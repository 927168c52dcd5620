"""Many questions about one image: questions per second, dense and pruned, with and without the prefix cache.

Four measurements in turn separate two gains: that of the cache (with / without it, the same config), and that of
pruning (pruned / dense, both without cache).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llava.model.pruning import PruningConfig
from llava.model.pruning.methods import NoPruning
from llava.model.pruning.prefix_cache import Reused
from llava.model.pruning.trace import PruningTrace

from .figures import spread
from .rounds import take_turns
from .workload import Workload

CACHED = " with prefix cache"


@dataclass(frozen=True)
class Pass:
    """One pass over all questions: seconds, cache statistics (None without), traces (if pruned)."""

    seconds: float
    reused: Reused | None
    traces: list[PruningTrace]

    @property
    def plan(self) -> list[list[int]]:
        """Tokens per layer of every prompt."""
        return [trace.tokens_per_layer for trace in self.traces]


def ask_all(workload: Workload, config: PruningConfig | None, cache: int | None, new_tokens: int) -> Pass:
    """Time all questions; dense is the untouched model without `cache` (bytes), the engine with it."""
    if config is None and cache is not None:
        config = NoPruning()
    with torch.inference_mode(), workload.pruned(config, cache) as session:
        _wait(workload.model.device)
        start = time.perf_counter()
        workload.ask(new_tokens)
        _wait(workload.model.device)
        seconds = time.perf_counter() - start
        reused = None if cache is None else session.prefix_cache.reused
        return Pass(seconds, reused, [] if session is None else session.traces)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def measure(
    workload: Workload, configs: Mapping[str, PruningConfig], cache: int, new_tokens: int, rounds: int
) -> dict[str, Any]:
    """Ask everything in turn, dense and every config, without and with the cache; the first round is not counted."""
    cells = {}
    for name, config in {"dense": None, **configs}.items():
        cells |= {name: (config, None), name + CACHED: (config, cache)}

    def run(name: str, cell: tuple[PruningConfig | None, int | None]) -> Pass:
        return ask_all(workload, *cell, new_tokens)

    take_turns(cells, 1, run, "warming up")
    passes = take_turns(cells, rounds, run)
    return {name: _figures(name, passes, len(workload.sizes)) for name in ("dense", *configs)}


def _figures(name: str, passes: Mapping[str, Sequence[Pass]], count: int) -> dict[str, Any]:
    """Return questions per second of one config, and its gains: ratios within a round, median and range over rounds."""
    dense, without, cached = ([one.seconds for one in passes[key]] for key in ("dense", name, name + CACHED))
    reused = passes[name + CACHED][-1].reused
    alike = [one.plan for one in passes[name]] == [one.plan for one in passes[name + CACHED]]
    return {
        **spread("questions_per_second", [count / seconds for seconds in without]),
        **spread("questions_per_second_reuse", [count / seconds for seconds in cached]),
        **spread("gain_reuse", [one / two for one, two in zip(without, cached, strict=True)]),
        **spread("gain_pruning", [one / two for one, two in zip(dense, without, strict=True)]),
        **spread("gain", [one / two for one, two in zip(dense, cached, strict=True)]),
        "rows_reused": None if reused is None else round(reused.share, 4),
        "same_decisions": None if name == "dense" else alike,
    }
