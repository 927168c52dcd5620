"""Peak memory of a run's tensors, above weights and inputs.

Two figures, each above the memory allocated at its start: of the whole run, and of the decoder's prefill (activations,
keys and values). CUDA has a counter (`torch.cuda.max_memory_allocated`); on a CPU the allocator's events of an extra,
untimed run under torch's profiler are summed. Both count tensors and kernel workspaces, not an allocator's reserve.
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
    """Peak bytes of the whole run, and of the decoder's prefill; None where that was not measured."""

    whole: int
    prefill: int | None = None


@contextmanager
def around_prefill(decoder: nn.Module | None, begin: Callable[[], Any], end: Callable[[], Any]) -> Iterator[None]:
    """Call `begin` before the decoder's first forward inside the block, and `end` after it; neither without decoder."""
    if decoder is None:
        yield
        return
    forwards = []

    def before(*_) -> None:
        forwards.append(None)
        if len(forwards) == 1:
            begin()

    def after(*_) -> None:
        if len(forwards) == 1:
            end()

    hooks = [decoder.register_forward_pre_hook(before), decoder.register_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class CudaPeak:
    """Peak bytes that a block allocates, from a CUDA device's own counters; nothing on other devices.

    decoder: whose first forward is measured too; None for the block alone
    `bytes` and `prefill` are None until the block ends, and where the device does not count.
    """

    def __init__(self, device: torch.device, decoder: nn.Module | None = None):
        self.device, self.bytes, self.prefill = device, None, None
        self._counts = device.type == "cuda"
        self._hooks = around_prefill(decoder, self._begin, self._end) if self._counts else nullcontext()

    def __enter__(self) -> CudaPeak:
        if self._counts:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            self._most = 0
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._hooks.__exit__(*exception)
        if self._counts:
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
    """Call `run` and return the peak CPU bytes of tensors that it allocates.

    decoder: whose first forward is measured too
    """
    mark = record_function(PREFILL)
    recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _silent_stderr():
        recorded.start()
    try:
        with around_prefill(decoder, mark.__enter__, lambda: mark.__exit__(None, None, None)):
            run()
    finally:
        with _silent_stderr():
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
    """Return the most that is held from `start` to `end`, above what is held at `start`."""
    held = most = 0
    for moment, change in changes:
        if start <= moment <= end:
            held += change
            most = max(most, held)
    return most


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what the profiler's library writes to stderr, past Python, when it starts and stops."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
