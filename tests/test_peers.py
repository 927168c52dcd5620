"""Six methods against runs of their published code (tests/peers): tokens kept, merged states, logits, answers.

Recorded on CPU in fp32, batch 1, with the code's own model files: FastV (pkunlp-icler/FastV d165972), PyramidDrop
(Cooperx521/PyramidDrop 6444f30) and SparseVLM (Gumpest/SparseVLMs 26a5f48, 734d900, 91fb6d9) on a random decoder, of
which the first eight layers are kept here; VisionZip (dvlab-research/VisionZip 3151f6d), DivPrune (vbdi/divprune
799e2d9) and VTW (lzhxmu/VTW a3d8cfc) on llava-tiny.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from llava import load_pretrained_model, prune
from llava.mm_utils import process_images
from llava.model.pruning.methods.sparsevlm import density_peaks
from llava.tiny.accuracy import CHECKPOINT

HERE = Path(__file__).parent / "peers"
RECORDED = json.loads((HERE / "cases.json").read_text(encoding="utf-8"))
TOLERANCE = 1e-4


def by_name(kind):
    return [pytest.param(case, id=case["name"]) for case in RECORDED[kind]]


@pytest.fixture(scope="module")
def decoder():
    arrays = np.load(HERE / "attention.npz")
    config = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=8, num_attention_heads=4,
                         num_key_value_heads=4, vocab_size=8, rms_norm_eps=1e-5)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    weights = {name: torch.from_numpy(arrays[name]).float() for name in arrays.files if ".layers." in name}
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    return model, arrays


@pytest.mark.parametrize("case", by_name("cases"))
@torch.no_grad()
def test_tokens_and_merged_states_of_attention_methods(decoder, case):
    """A cut names the published tokens, merged ones (−1) apart, also where an earlier cut has moved them."""
    model, arrays = decoder
    prompt = RECORDED["prompts"][case["prompt"]]
    embeds = torch.from_numpy(arrays[f"embeds {case['prompt']}"]).float()[None]
    visual = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    visual[:, prompt["prefix"] : prompt["prefix"] + prompt["visual"]] = True
    with prune(model, case["config"], visual) as session:
        entering = model(inputs_embeds=embeds, output_hidden_states=True).hidden_states
    (trace,) = session.traces
    assert [(layer, len(kept)) for layer, kept in trace.cuts] == [(layer, len(kept)) for layer, kept in case["cuts"]]
    for (layer, kept), (_, published) in zip(trace.cuts, case["cuts"], strict=True):
        assert {place for place in published if place >= 0} <= set(kept)
        if f"{case['name']}|merged{layer}" in arrays:
            merged, end = arrays[f"{case['name']}|merged{layer}"], prompt["prefix"] + len(kept)
            assert np.abs(entering[layer + 1][0, end - len(merged) : end].numpy() - merged).max() < TOLERANCE


def test_equally_dense_tokens_count_in_their_order():
    """Two mutual nearest neighbours are always equally dense, with two clusters; the published code draws lots."""
    for seed in range(20):
        points = np.random.default_rng(seed).normal(size=(12, 4))
        points[6:] = points[:6]
        distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
        centres, cluster = density_peaks(distance, 3)
        assert centres.max() < 6 and (cluster[:6] == cluster[6:]).all()
        assert sorted(cluster[centres]) == [0, 1, 2]


@pytest.fixture(scope="module")
def tiny():
    return load_pretrained_model(CHECKPOINT, None, "llava-tiny", device="cpu")


@pytest.mark.parametrize("case", by_name("encoder"))
@torch.no_grad()
def test_tokens_states_and_answers_of_methods_before_and_beside_the_decoder(tiny, case):
    _, model, processor, _ = tiny
    arrays = np.load(HERE / "encoder.npz")
    ids = torch.tensor([case["ids"]])
    images = process_images([Image.open(HERE / case["image"])], processor, model.config)
    first = case["ids"].index(-200)
    with prune(model, case["config"]) as session:
        entered = model(input_ids=ids, images=images, output_hidden_states=True).hidden_states[0][0]
        answer = model.generate(ids, images=images, do_sample=False, max_new_tokens=len(case["tokens"]),
                                output_logits=True, return_dict_in_generate=True)  # fmt: skip
    trace = session.traces[0]
    assert trace.tokens_per_layer == case["rows"] and trace.kv_tokens_per_layer == case["kv"]
    assert answer.sequences[0].tolist() == case["tokens"]
    logits = torch.cat(answer.logits).numpy()
    assert np.abs(logits - arrays[case["name"]][: len(logits)]).max() < TOLERANCE
    if "order" in case:
        assert trace.cuts == [(-1, sorted(first + patch for patch in case["order"]))]
    if "dominant" in case:
        assert {first + token - 1 for token in case["dominant"] if token} <= set(trace.cuts[0][1])
    if f"{case['name']}|entered" in arrays:
        merged = arrays[f"{case['name']}|entered"]
        assert np.abs(entered[first : first + len(merged)].numpy() - merged).max() < TOLERANCE


def test_every_method_with_a_published_code_is_recorded():
    methods = {case["config"]["method"] for case in itertools.chain(RECORDED["cases"], RECORDED["encoder"])}
    assert methods == {"fastv", "pyramiddrop", "sparsevlm", "visionzip", "divprune", "vtw"}
