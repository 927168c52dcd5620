"""Peak memory of a run: what its tensors take above what was allocated before it (weights and inputs).

CUDA counts by itself (`torch.cuda.max_memory_allocated`). On a CPU the allocator's events are summed, from one more
run under torch's profiler, which is not timed. Both count tensors and the kernels' workspaces, not what an allocator
keeps in reserve.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


class CudaPeak:
    """Bytes that a block allocates at most, from a CUDA device's own counters; nothing on other devices.

    `bytes` is None until the block ends, and where the device does not count.
    """

    def __init__(self, device: torch.device):
        self.device, self.bytes = device, None

    def __enter__(self) -> CudaPeak:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *exception) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before


def cpu_peak(run: Callable[[], Any]) -> int:
    """Call `run` and return the bytes of CPU memory that its tensors take at most, above those from before."""
    recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _hushed():
        recorded.start()
    try:
        run()
    finally:
        with _hushed():
            recorded.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    on_cpu = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    held = peak = 0
    for event in sorted(on_cpu, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


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
