"""CUDA only: kernels for packed prompts, and recorded layers. Skipped elsewhere."""

import pytest
import torch
from conftest import MIXED, Prompts, random_llama

from llava.model.pruning import prune
from llava.model.pruning.graphs import LayerGraphs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PLANS = {
    "nothing pruned": {"mode": []},
    "plan": {"method": "replay", "filter_layer": 2, "keep": 3, "exit_layer": 4, "shallow_layers": 2},
}


@pytest.fixture(scope="module")
def models():
    return {dtype: random_llama(hidden=64).to("cuda", dtype) for dtype in (torch.float32, torch.bfloat16)}


def read(model, prompts, config, **options):
    inputs = {"inputs_embeds": prompts.embeds.to("cuda", model.dtype), "attention_mask": prompts.attention_mask.cuda()}
    with torch.no_grad(), prune(model, config, prompts.visual.cuda(), **options):
        return model(**inputs)


@pytest.mark.parametrize("name", PLANS)
def test_flash_kernels_read_packed_prompts_as_sdpa_does(models, name):
    prompts = Prompts(*MIXED, hidden=64)
    precise = read(models[torch.float32], prompts, PLANS[name]).logits[:, -1]
    for backend in ("auto", "sdpa"):
        output = read(models[torch.bfloat16], prompts, PLANS[name], backend=backend).logits[:, -1]
        assert (output.float() - precise).abs().max() < 0.4 * precise.std()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PLANS)
def test_recorded_layers_are_the_layers(models, name, dtype):
    model, graphs = models[dtype], LayerGraphs()
    for sample in [*MIXED, "t" * 40 + "v" * 90 + "t" * 9, MIXED[0]]:
        prompts = Prompts(sample, hidden=64)
        expected = read(model, prompts, PLANS[name])
        output = read(model, prompts, PLANS[name], cuda_graphs=graphs)
        limit = 1e-4 if dtype == torch.float32 else 0.4 * expected.logits.float().std()
        assert (output.logits[:, -1] - expected.logits[:, -1]).abs().max() < limit
        for mine, its in zip(output.past_key_values.layers, expected.past_key_values.layers, strict=True):
            assert mine.keys.shape == its.keys.shape and (mine.keys - its.keys).abs().max() < 10 * limit
    assert graphs.recorded > 0


def test_answers_with_recorded_layers(models):
    model, prompts = models[torch.float32], Prompts(MIXED[0], hidden=64)
    arguments = {"inputs_embeds": prompts.embeds.cuda(), "attention_mask": prompts.attention_mask.cuda()}
    arguments |= {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    answers = []
    for option in (False, True, True):
        with torch.inference_mode(), prune(model, PLANS["plan"], prompts.visual.cuda(), cuda_graphs=option):
            answers.append(model.generate(**arguments))
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])
