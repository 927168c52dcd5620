"""Memory: bytes of the cache after a prefill, peak of a prefill, and their measurement."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llava.eval.timing.force_plan import with_thresholds
from llava.eval.timing.memory import CudaPeak, cpu_peak
from llava.eval.timing.options import BenchOptions, ForcedPlan
from llava.eval.timing.rounds import peak_on_cpu, run_once
from llava.eval.timing.shapes import Shape, sharpen
from llava.eval.timing.workload import random_workload
from llava.model.pruning import PruningConfig
from llava.model.pruning.flops import DecoderShape

CPU = torch.device("cpu")
PAPER = {"mode": ["shallow", "middle", "deep"], "layer_threshold": 0.99, "tokens_threshold": 0.1}


def workload_of(layers, batch_size, visual, text):
    """A small random decoder that reads prompts of `visual` and `text` tokens."""
    shape = Shape(DecoderShape(layers, 48, 128, 4, 4, 12), 97, visual)
    options = BenchOptions(num_layers=layers, batch_size=batch_size, prompt_tokens=text)
    return random_workload(shape, options, CPU, torch.float32)


def test_the_papers_schedule_keeps_at_most_two_fifths_of_the_cache():
    """LLaVA-1.5-7B's depth and prompt: 6 shallow layers, filter layer 14, 10 tokens kept, exit 24; it is 36%."""
    visual, text = 576, 64
    workload = workload_of(32, 1, visual, text)
    sharpen(workload.decoder.layers, 14)
    config = with_thresholds("paper", PruningConfig.from_dict(PAPER), ForcedPlan(14, 10, 24), workload)
    assert config.preset == "paper" and config.resolved(32).shallow_mid_layer == 6
    with torch.inference_mode(), workload.pruned(config) as session:
        caches = []
        hook = workload.decoder.register_forward_hook(lambda *call: caches.append(call[-1].past_key_values))
        workload.ask(1)
        hook.remove()
    trace = session.traces[0]
    assert (trace.filter_layer, len(trace.kept), trace.exit_layer) == (14, 10, 24)
    by_hand = (1 + 6 * text) + 9 * (visual + text) + 9 * (10 + text) + 8 * text
    assert trace.kv_bytes == caches[0].nbytes() == by_hand * 2 * 48 * 4
    assert trace.kv_bytes <= 0.40 * trace.dense_kv_bytes


@pytest.fixture(scope="module")
def batch():
    """Thirty-two prompts, as many as GQA asks about one image."""
    return workload_of(8, 32, visual=40, text=24)


@pytest.mark.parametrize(
    "config",
    [
        PAPER | {"shallow_mid_layer": 2},
        {"method": "replay", "filter_layer": 3, "keep": 5, "exit_layer": 6, "shallow_layers": 2},
        {"method": "fastv", "k": 4},
    ],
    ids=["visipruner", "replay", "fastv"],
)
def test_a_pruned_batch_takes_no_more_than_the_dense_one(batch, config):
    """Packing, probing and padding must not cost what pruning saves."""
    dense = peak_on_cpu(batch, None, 2)
    pruned = peak_on_cpu(batch, PruningConfig.from_dict(config), 2)
    assert pruned.prefill <= dense.prefill and pruned.whole <= dense.whole
    assert 0 < dense.prefill <= dense.whole


def test_packing_alone_takes_one_copy_of_the_hidden_states(batch):
    """What `generate` was given stays alive beside the packed stream; pruning has to save that first."""
    dense, packed = (peak_on_cpu(batch, config, 2) for config in (None, PruningConfig.from_dict({"method": "none"})))
    copy = sum(tokens for tokens, _ in batch.sizes) * batch.shape.hidden * 4
    assert packed.prefill - dense.prefill <= 1.1 * copy


class Holding(nn.Module):
    """Takes so many bytes while it runs, a tenth of that after its first run."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        size, self.size = self.size, self.size // 10
        return torch.ones(size // 4).sum() + x.sum()


def test_prefill_is_the_decoders_first_forward_alone():
    decoder = Holding(40_000)

    def work():
        held = torch.ones(20_000)  # 80,000 bytes, in front of the decoder
        decoder(held)
        decoder(held)
        return torch.ones(50_000)

    found = cpu_peak(work, decoder)
    assert 40_000 <= found.prefill < 40_400
    assert 280_000 <= found.whole < 280_400
    assert not decoder._forward_hooks and not decoder._forward_pre_hooks


def test_cuda_counters_are_read_around_the_first_forward(monkeypatch):
    """Stand-ins for a device with 100 bytes of weights, whose earlier peak of 900 must not show anywhere."""
    counters = {"now": 100, "most": 900}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: counters["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: counters["most"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: counters.update(most=counters["now"]))

    class Decoder(nn.Module):
        def forward(self, now, most):
            counters.update(now=now, most=max(most, counters["most"]))

    decoder = Decoder()
    with CudaPeak(torch.device("cuda"), decoder) as memory:
        counters.update(now=150, most=500)  # a vision tower that took 400
        decoder(200, 350)
        decoder(210, 380)
    assert (memory.prefill, memory.bytes) == (200, 400)


def test_a_run_without_a_known_peak_has_none(batch):
    assert run_once(batch, None, 1).peak is None
