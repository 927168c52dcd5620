"""Processes that accelerate started together: a shared key-value store; if one process fails, all stop.

There are no collectives between the first moment and the last: a process that waits for others polls the store, where
it also finds that one of them failed, so none hangs.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from llava.cli import INTERRUPTED, one_line

SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_BETWEEN_PULSES = 5.0
SECONDS_WITHOUT_PULSE = 60.0
SECONDS_TO_LEAVE = 10.0
_FAILED = "failed"


class RankError(RuntimeError):
    """Another process failed or is gone; the message is its reason in one line."""


class Ranks:
    """One process, the `index`-th of `count`; alone (0 of 1) where no launcher started it.

    `device`: the device of this process, None where it is alone and may choose.
    """

    def __init__(self, index: int = 0, count: int = 1, device: str | None = None, store: Any = None):
        self.index, self.count, self.device = index, count, device
        self._store = store
        self._over, self._failed = threading.Event(), False
        if store is not None:
            threading.Thread(target=self._beat, daemon=True).start()

    @classmethod
    def join(cls, device: str) -> Ranks:
        """Connect to the other processes, if a launcher started any; `device`: "auto", "cpu" or "cuda".

        Raises `ValueError` for a device that several processes cannot take.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        import torch
        import torch.distributed as dist
        from accelerate import PartialState

        if device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"--device {device} with several processes: give cpu or cuda, each takes a GPU of its own")
        state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
        mine = state.device
        host, store = os.environ["MASTER_ADDR"], None
        port: list[int | None] = [None]
        if state.process_index == 0:
            store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
            port = [store.port]
        dist.broadcast_object_list(port, src=0, device=mine)
        if store is None:
            store = dist.TCPStore(host, port[0], is_master=False)
        name = "cpu" if mine.type == "cpu" else str(mine)
        return cls(state.process_index, state.num_processes, name, store)

    @property
    def name(self) -> str:
        """How messages call the process."""
        return f"rank {self.index} of {self.count}"

    def check(self) -> None:
        """Raise `RankError` if another process has failed."""
        if self._store is not None and self._has(_FAILED):
            raise RankError(self._read(_FAILED))

    def publish(self, name: str, value: Any) -> None:
        """Publish a JSON value to every process; each name can be used once."""
        if self._store is not None:
            self._write(name, json.dumps(value))

    def take(self, name: str, of: int = 0) -> Any:
        """Wait for the value that rank `of` publishes as `name`; `RankError` if a process fails or is gone."""
        pulse, heard = "", time.monotonic()
        while not self._has(name):
            self.check()
            if time.monotonic() - heard > SECONDS_WITHOUT_PULSE:
                raise RankError(f"rank {of} has not been heard of for {SECONDS_WITHOUT_PULSE:.0f} s")
            beat = self._read(f"pulse/{of}") if self._has(f"pulse/{of}") else ""
            if beat != pulse:
                pulse, heard = beat, time.monotonic()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return json.loads(self._read(name))

    def broadcast(self, name: str, value: Any) -> Any:
        """Return rank 0's value in every process."""
        if self._store is None:
            return value
        if self.index == 0:
            self.publish(name, value)
            return value
        return self.take(name)

    def gather(self, name: str, value: Any) -> list[Any]:
        """Return all ranks' values in order on rank 0, an empty list elsewhere."""
        if self._store is None:
            return [value]
        self.publish(f"{name}/{self.index}", value)
        return [self.take(f"{name}/{of}", of) for of in range(self.count)] if self.index == 0 else []

    def fail(self, reason: str) -> bool:
        """Tell the others why this process ends; False where one of them failed before."""
        self._failed = True
        if self._store is None:
            return True
        mine = f"{self.name} failed: {reason}"
        try:
            return self._store.compare_set(_FAILED, "", mine).decode() == mine
        except RuntimeError:  # rank 0, which holds the store, is gone
            return True

    def leave(self) -> None:
        """End together, in some seconds at most.

        Rank 0, which holds the store, waits for the others. So does a failed process, because a launcher kills all
        processes of a machine as soon as one fails, even while they write.
        """
        self._over.set()
        if self._store is None:
            return
        deadline = time.monotonic() + SECONDS_TO_LEAVE
        with suppress(RuntimeError):  # rank 0 is gone
            self._store.set(f"left/{self.index}", "1")
            if self.index and not self._failed:
                _close_group()
                return
            names = [f"left/{of}" for of in range(self.count)]
            while not self._store.check(names) and time.monotonic() < deadline:
                time.sleep(SECONDS_BETWEEN_LOOKS)
            if self.index == 0:
                time.sleep(3 * SECONDS_BETWEEN_LOOKS)  # the one that failed may be looking
            if not self._failed:
                _close_group()

    def _beat(self) -> None:
        count = 0
        while not self._over.wait(SECONDS_BETWEEN_PULSES if count else 0):
            count += 1
            try:
                self._store.set(f"pulse/{self.index}", str(count))
            except RuntimeError:
                return

    def _has(self, name: str) -> bool:
        try:
            return self._store.check([name])
        except RuntimeError as error:
            raise RankError("rank 0 is gone") from error

    def _read(self, name: str) -> str:
        try:
            return self._store.get(name).decode()
        except RuntimeError as error:
            raise RankError("rank 0 is gone") from error

    def _write(self, name: str, value: str) -> None:
        try:
            self._store.set(name, value)
        except RuntimeError as error:
            raise RankError("rank 0 is gone") from error


def together(device: str, work: Callable[[Ranks], None]) -> int:
    """Do `work` in every process that a launcher started, on `device`, and return the exit status.

    A single process raises the exception of `work`; of several, the failing one prints it and the others stop.
    """
    ranks = Ranks.join(device)
    try:
        work(ranks)
    except KeyboardInterrupt:
        ranks.fail("interrupted")
        if ranks.index == 0:
            raise
        return INTERRUPTED
    except RankError as error:
        print(f"error: {ranks.name} stops: {error}; the same command (without --overwrite) continues", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        reason = one_line(error)
        if ranks.count == 1:
            raise
        if ranks.fail(reason):
            print(f"error: {reason} ({ranks.name})", file=sys.stderr)
        return 1
    finally:
        ranks.leave()
    return 0


def _close_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():  # NCCL warns of a group that is left open
        dist.destroy_process_group()
