"""Recorded layers equal the layers: on CPU, with a stand-in for the CUDA graph; tests/test_cuda.py has the real one."""

from dataclasses import replace

import family_models_llava
import family_models_tiles
import pytest
import torch
from conftest import FULL, MIXED, Prompts, random_llama
from family_models import CASES, batch_of
from traced_graphs import Traced

from llava.eval.timing.options import BenchOptions
from llava.eval.timing.rounds import run_once
from llava.eval.timing.shapes import SHAPES
from llava.eval.timing.workload import random_workload
from llava.model.pruning import PruningConfig, RaggedCache, prune
from llava.model.pruning.graphs import STEP, CudaRecorder, LayerGraphs

PLAN = {"method": "replay", "filter_layer": 1, "keep": 3, "exit_layer": 4}
CONFIGS = {
    "plan": PLAN,
    "plan with masked layers": {**PLAN, "filter_layer": 2, "shallow_layers": 2},
    "nothing pruned": {"mode": []},
    "visipruner": FULL,
    "fastv": {"method": "fastv", "k": 2, "r": 0.5},
    "sparsevlm": {"method": "sparsevlm", "layers": [1, 2, 4], "keep": [400, 300, 200]},
    "pyramiddrop compact": {"method": "pyramiddrop", "layers": [1, 3], "ratios": [0.5, 0.2], "positions": "compact"},
}


@pytest.fixture
def graphs():
    return LayerGraphs(record=Traced())


def read(model, prompts, config, graphs=False, **more):
    with torch.no_grad(), prune(model, config, prompts.visual, cuda_graphs=graphs) as session:
        output = model(**prompts.inputs, **more)
    return output, session.traces


@pytest.mark.parametrize("name", CONFIGS)
def test_recorded_layers_are_the_layers(llama, graphs, name):
    """Prompts of several lengths one after another, and the first once more: logits, caches and decisions are equal."""
    samples = [*MIXED, "t" * 40 + "v" * 90 + "t" * 9, MIXED[0]]
    for sample in samples:
        prompts = Prompts(sample)
        expected, known = read(llama, prompts, CONFIGS[name])
        output, traces = read(llama, prompts, CONFIGS[name], graphs)
        assert (output.logits[:, -1] - expected.logits[:, -1]).abs().max() < 1e-5
        for mine, its in zip(output.past_key_values.layers, expected.past_key_values.layers, strict=True):
            assert (mine.keys - its.keys).abs().max() < 1e-5 and (mine.values - its.values).abs().max() < 1e-5
        assert [trace.tokens_per_layer for trace in traces] == [trace.tokens_per_layer for trace in known]
        assert [trace.kept for trace in traces] == [trace.kept for trace in known]
    assert 0 < graphs.record.recorded == graphs.recorded < graphs.record.replayed


@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in family_models_llava.CASES | family_models_tiles.CASES]
)
def test_every_family_is_recorded(name, graphs):
    """M-RoPE's angles, grouped heads, layers that get keywords of their family."""
    model = CASES[name].model
    for word in CASES[name].prompts:
        batch = batch_of(name, word)
        found = []
        for option in (False, graphs):
            with torch.no_grad(), CASES[name].prune({"method": "fastv", "k": 1, "r": 0.8}, batch, cuda_graphs=option):
                found.append(model(**batch.inputs).logits[:, -1])
        assert (found[0] - found[1]).abs().max() < 1e-4
    if not name.startswith("paligemma"):  # whose prefix is a block as long as it has two tokens
        assert graphs.record.replayed >= graphs.record.recorded > 0


def test_what_was_recorded_serves_all_prompts_of_its_width(llama, graphs):
    counts = []
    for text in (3, 5, 20, STEP):
        read(llama, Prompts("t" * text + "v" * 9 + "t" * text), {"mode": []}, graphs)
        counts.append(graphs.recorded)
    layers = llama.config.num_hidden_layers
    assert counts == [layers, layers, layers, 2 * layers]
    assert graphs.record.replayed == 4 * layers


def test_a_cache_does_not_change_with_the_next_prompt(llama, graphs):
    first, _ = read(llama, Prompts("t" * 5 + "v" * 9 + "t" * 4), PLAN, graphs)
    assert isinstance(first.past_key_values, RaggedCache)
    before = [layer.keys.clone() for layer in first.past_key_values.layers]
    logits = first.logits.clone()
    read(llama, Prompts("t" * 4 + "v" * 7 + "t" * 8), PLAN, graphs)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(first.past_key_values.layers, before, strict=True))
    assert torch.equal(first.logits, logits)


def test_answers_are_the_same(llama, graphs):
    prompts = Prompts("t" * 5 + "v" * 9 + "t" * 4)
    arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, **prompts.inputs}
    with torch.inference_mode(), prune(llama, PLAN, prompts.visual):
        expected = llama.generate(**arguments)
    for _ in range(2):  # inference mode ends and begins in between
        with torch.inference_mode(), prune(llama, PLAN, prompts.visual, cuda_graphs=graphs):
            assert torch.equal(llama.generate(**arguments), expected)


def test_long_prompts_batches_gradients_and_hidden_states_run_as_ever(llama):
    graphs = LayerGraphs(most=20, record=Traced())
    read(llama, Prompts("t" * 10 + "v" * 30 + "t" * 4), {"mode": []}, graphs)
    read(llama, Prompts(*MIXED), {"mode": []}, graphs)
    short = Prompts("t" * 3 + "v" * 4 + "t" * 3)
    read(llama, short, {"mode": []}, graphs, output_hidden_states=True)
    with prune(llama, {"mode": []}, short.visual, cuda_graphs=graphs):
        embeds = short.embeds.clone().requires_grad_()
        llama(inputs_embeds=embeds).logits.sum().backward()
        assert embeds.grad.abs().sum() > 0
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            llama(**short.inputs)
    assert graphs.recorded == 0
    read(llama, short, {"mode": []}, graphs)
    assert graphs.recorded == llama.config.num_hidden_layers


def test_weights_may_change_and_be_replaced():
    model, prompts, graphs = random_llama(), Prompts("t" * 5 + "v" * 9 + "t" * 4), LayerGraphs(record=Traced())
    read(model, prompts, PLAN, graphs)
    kept = graphs.record.recorded
    for change in ("in place", "replaced"):
        weight = model.model.layers[5].mlp.down_proj.weight
        with torch.no_grad():
            if change == "in place":
                weight.mul_(2)
            else:
                weight.data = weight.data * 2
        expected, _ = read(model, prompts, PLAN)
        output, _ = read(model, prompts, PLAN, graphs)
        assert (output.logits[:, -1] - expected.logits[:, -1]).abs().max() < 1e-5
        assert graphs.record.recorded == kept * (1 if change == "in place" else 2)


def test_half_precision_and_its_own_recordings(graphs):
    prompts = Prompts("t" * 5 + "v" * 9 + "t" * 4)
    for dtype in (torch.float32, torch.bfloat16):
        model = random_llama().to(dtype)
        inputs = {"inputs_embeds": prompts.embeds.to(dtype)}
        with torch.no_grad(), prune(model, PLAN, prompts.visual, cuda_graphs=graphs):
            output = model(**inputs).logits[:, -1]
        with torch.no_grad(), prune(model, PLAN, prompts.visual):
            assert (output - model(**inputs).logits[:, -1]).abs().max() < (1e-5 if dtype == torch.float32 else 5e-2)


def test_pruned_runs_of_the_bench_replay_what_was_recorded(graphs):
    options = BenchOptions(shape="tiny", num_layers=6, prompt_tokens=20)
    plain = random_workload(SHAPES["tiny"], options, torch.device("cpu"), torch.float32)
    recording = replace(plain, graphs=graphs)
    runs = [run_once(one, PruningConfig.of(PLAN), 3) for one in (plain, recording, recording)]
    assert runs[0].traces[0].tokens_per_layer == runs[2].traces[0].tokens_per_layer
    assert 0 < graphs.recorded == graphs.record.recorded == graphs.record.replayed / 2
    assert run_once(recording, None, 1).traces == []


def test_what_cannot_be_recorded_is_refused(llama):
    with pytest.raises(ValueError, match="needs a model on a CUDA device, this one is on cpu; leave it out"):
        prune(llama, PLAN, torch.ones(1, 4, dtype=torch.bool), cuda_graphs=True)
    with pytest.raises(ValueError, match="leave it or prefix_cache out"):
        prune(llama, PLAN, torch.ones(1, 4, dtype=torch.bool), cuda_graphs=True, prefix_cache=True)
    CudaRecorder().check(torch.device("cuda:1"))
    spread = random_llama()
    spread.model.layers[3].to("meta")
    with pytest.raises(ValueError, match="needs all layers on one device, they are on cpu, meta; leave it out"):
        prune(spread, PLAN, torch.ones(1, 4, dtype=torch.bool), cuda_graphs=LayerGraphs(record=Traced()))
