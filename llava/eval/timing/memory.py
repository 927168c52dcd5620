"""Peak memory of a run: what its tensors take above what was allocated before it (weights and inputs).

Two figures: of the whole run, and of the decoder's prefill alone, which is its activations and the keys and values that
it leaves behind, above what was held when it began. CUDA counts by itself (`torch.cuda.max_memory_allocated`). On a CPU
the allocator's events are summed, from one more run under torch's profiler, which is not timed. Both count tensors and
the kernels' workspaces, not what an allocator keeps in reserve.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

PREFILL = "the decoder's prefill"


class Peak(NamedTuple):
    """Bytes at most: of the whole run, and of the decoder's prefill; None where that was not watched."""

    whole: int
    prefill: int | None = None


@contextmanager
def around_prefill(decoder: nn.Module, begin: Callable[[], Any], end: Callable[[], Any]) -> Iterator[None]:
    """Call `begin` before the decoder's first forward inside the block, and `end` after it."""
    seen = []

    def before(*_) -> None:
        seen.append(None)
        if len(seen) == 1:
            begin()

    def after(*_) -> None:
        if len(seen) == 1:
            end()

    hooks = [decoder.register_forward_pre_hook(before), decoder.register_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class CudaPeak:
    """Bytes that a block allocates at most, from a CUDA device's own counters; nothing on other devices.

    decoder: whose first forward is watched, too; None for the block alone
    `bytes` and `prefill` are None until the block ends, and where the device does not count.
    """

    def __init__(self, device: torch.device, decoder: nn.Module | None = None):
        self.device, self.bytes, self.prefill = device, None, None
        self._watched = nullcontext()
        if device.type == "cuda" and decoder is not None:
            self._watched = around_prefill(decoder, self._begin, self._end)

    def __enter__(self) -> CudaPeak:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            self._most = 0
        self._watched.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._watched.__exit__(*exception)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.bytes = max(self._most, torch.cuda.max_memory_allocated(self.device)) - self._before

    def _begin(self) -> None:
        self._most = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self._held = torch.cuda.memory_allocated(self.device)

    def _end(self) -> None:
        most = torch.cuda.max_memory_allocated(self.device)
        self.prefill, self._most = most - self._held, max(self._most, most)


def cpu_peak(run: Callable[[], Any], decoder: nn.Module | None = None) -> Peak:
    """Call `run` and return the bytes of CPU memory that its tensors take at most, above those from before.

    decoder: whose first forward is watched, too
    """
    mark = record_function(PREFILL)
    watched = nullcontext()
    if decoder is not None:
        watched = around_prefill(decoder, mark.__enter__, lambda: mark.__exit__(None, None, None))
    recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _hushed():
        recorded.start()
    try:
        with watched:
            run()
    finally:
        with _hushed():
            recorded.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    on_cpu = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in on_cpu)
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in events if event.get("name") == PREFILL]
    return Peak(_most(changes), _most(changes, *spans[0]) if spans else None)


def _most(changes: list[tuple[float, int]], start: float = float("-inf"), end: float = float("inf")) -> int:
    """Return the most that is held from `start` to `end`, above what is held when it starts."""
    held = most = 0
    for moment, change in changes:
        if start <= moment <= end:
            held += change
            most = max(most, held)
    return most


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep off the screen what the profiler's library writes to stderr, past Python, when it starts and stops."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
