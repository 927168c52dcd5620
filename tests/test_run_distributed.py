"""The shared store of several processes: values reach all; a failed or silent process ends the waiting."""

import threading
import time

import pytest
import torch.distributed as dist

from llava.eval.runner import distributed
from llava.eval.runner.distributed import RankError, Ranks


@pytest.fixture
def pair(monkeypatch):
    """Two ranks in one process, with connections of their own."""
    monkeypatch.setattr(distributed, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(distributed, "SECONDS_BETWEEN_PULSES", 0.05)
    monkeypatch.setattr(distributed, "SECONDS_TO_LEAVE", 0.2)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    other = dist.TCPStore("127.0.0.1", store.port, is_master=False)
    both = Ranks(0, 2, "cpu", store), Ranks(1, 2, "cpu", other)
    yield both
    for one in reversed(both):
        one.leave()


def later(call):
    thread = threading.Timer(0.1, call)
    thread.start()
    return thread


def test_alone_there_is_nobody_to_wait_for(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Ranks.join("auto")
    assert (alone.index, alone.count, alone.device) == (0, 1, None)
    assert alone.broadcast("x", [1]) == [1] and alone.gather("y", 2) == [2]
    alone.check()
    alone.leave()


def test_several_processes_cannot_share_one_named_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device cuda:1 with several processes"):
        Ranks.join("cuda:1")


def test_values_reach_everybody_whenever_they_come(pair):
    first, second = pair
    later(lambda: first.broadcast("todo", [3, 1, 2]))
    assert second.broadcast("todo", None) == [3, 1, 2]
    later(lambda: second.gather("done", "b"))
    assert first.gather("done", "a") == ["a", "b"]


def test_a_failure_ends_the_waiting_of_the_others_with_its_reason(pair):
    first, second = pair
    later(lambda: second.fail("no memory"))
    with pytest.raises(RankError, match="rank 1 of 2 failed: no memory"):
        first.gather("done", 1)
    with pytest.raises(RankError, match="no memory"):
        first.check()
    assert not first.fail("something later"), "the first failure is the reason"


def test_a_rank_that_has_gone_silent_is_not_waited_for(pair, monkeypatch):
    first, second = pair
    first.take("pulse/1", 1)
    monkeypatch.setattr(distributed, "SECONDS_WITHOUT_PULSE", 0.4)
    second._over.set()  # as a kill would end it
    start = time.monotonic()
    with pytest.raises(RankError, match="rank 1 has not been heard of"):
        first.gather("done", 1)
    assert time.monotonic() - start >= 0.4


def test_a_living_rank_is_waited_for(pair, monkeypatch):
    first, second = pair
    monkeypatch.setattr(distributed, "SECONDS_WITHOUT_PULSE", 1.0)
    threading.Timer(2.0, lambda: second.publish("done/1", "late")).start()
    assert first.gather("done", "a") == ["a", "late"]
