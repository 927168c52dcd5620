"""Six methods against every recorded run of their published code (tests/peers): tokens, merged states, logits, answers.

Recorded on CPU in fp32, batch 1, with the code's own model files. `decoder`: FastV (pkunlp-icler/FastV d165972),
PyramidDrop (Cooperx521/PyramidDrop 6444f30) and SparseVLM (Gumpest/SparseVLMs 26a5f48, 734d900, 91fb6d9), 85 cases on a
random Llama. `runs`: VisionZip (dvlab-research/VisionZip 3151f6d), DivPrune (vbdi/divprune 799e2d9) and VTW
(lzhxmu/VTW a3d8cfc), 247 prompts on llava-tiny and on a random LLaVA of full size (tests/peer_models.py), which the
engine reads in batches; 14 of them show differences that the methods' docstrings name. Of logits and merged states
every so many columns are kept (`columns`). What a case of `decoder` expects:

equal    tokens kept in every layer, merged tokens, logits of prefill and of five decoded tokens, their ids
prefill  tokens kept and logits of the prefill; while decoding the published code does something else
reread   as `prefill`, and every later step of the published code, which ranks anew without a cache, is what the engine
         makes of the prompt with the decoded tokens appended
one_of   the published code breaks ties of density by noise: recorded are all outcomes of 40 seeds
"""

import json
from pathlib import Path

import numpy as np
import peer_models
import pytest
import torch
from llava_fixtures import pad_left
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from llava import load_pretrained_model, prune
from llava.mm_utils import process_images
from llava.model.pruning.fitting import first_exit, next_token_kl
from llava.model.pruning.methods.divprune import most_diverse
from llava.model.pruning.methods.sparsevlm import density_peaks
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import write_benchmarks

HERE = Path(__file__).parent / "peers"
RECORDED = json.loads((HERE / "cases.json").read_text(encoding="utf-8"))
ARRAYS = np.load(HERE / "recorded.npz")
RUNS = {run["name"]: run for run in RECORDED["runs"]}
DIFFERENT = {
    "visionzip random [476, 100]",
    "divprune random 0.0005",
    "divprune random two",
    "vtw random 20",
    "vtw random two",
}
TOLERANCE = 1e-4


def off(found, recorded) -> float:
    """Largest difference of `found` [..., n] from what was kept of the published [..., n] (every so many columns)."""
    step = -(-found.shape[-1] // recorded.shape[-1])
    return float(np.abs(np.asarray(found)[..., ::step] - recorded).max())


def test_every_recorded_prompt_is_compared():
    prompts = {name: len(run["prompts"]) for name, run in RUNS.items()}
    assert (len(RECORDED["decoder"]), sum(prompts.values())) == (85, 247)
    assert sum(count for name, count in prompts.items() if name not in DIFFERENT) == 233


@pytest.fixture(scope="module")
def decoder():
    weights = {name: torch.from_numpy(ARRAYS[name]).float() for name in ARRAYS.files if name.endswith(".weight")}
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=20,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=320,
        rms_norm_eps=1e-5,
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def generate(model, case, steps, more=()):
    """Logits [steps, vocabulary], ids, trace, and what entered each layer of the prefill."""
    prompt = RECORDED["prompts"][case["prompt"]]
    embeds = torch.from_numpy(ARRAYS[f"embeds {case['prompt']}"]).float()[None]
    embeds = torch.cat([embeds, model.model.embed_tokens.weight[list(more)][None]], 1)
    visual = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    first = prompt["prefix"] + case.get("shift", 0)
    visual[:, first : first + prompt["visual"]] = True
    with prune(model, case["config"], visual) as session:
        output = model.generate(
            inputs_embeds=embeds,
            do_sample=False,
            max_new_tokens=steps,
            eos_token_id=None,
            output_logits=True,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
    return torch.cat(output.logits).numpy(), output.sequences[0].tolist(), session.traces[0], output.hidden_states[0]


def dropping(cuts, trace):
    """The cuts that leave fewer tokens than there were."""
    before = [trace.visual_tokens, *(len(kept) for _, kept in cuts)]
    return [cut for cut, count in zip(cuts, before, strict=False) if len(cut[1]) < count]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in RECORDED["decoder"]])
def test_methods_inside_the_decoder(decoder, case):
    """A cut names the published tokens, merged ones (−1) apart, also where an earlier cut has moved them."""
    expect, published, ids = case["expect"], ARRAYS[f"logits {case['name']}"], case["tokens"]
    steps = 6 if expect in ("equal", "one_of") else 1
    logits, found, trace, entering = generate(decoder, case, steps)
    if expect == "one_of":
        nearest = min(range(len(ids)), key=lambda outcome: off(logits[0], published[outcome, 0]))
        published, ids = published[nearest], ids[nearest]
    elif case["cuts"] is not None:  # a mask in the published attention leaves no list of tokens
        published_cuts, cuts = dropping(case["cuts"], trace), dropping(trace.cuts, trace)
        assert [(layer, len(kept)) for layer, kept in cuts] == [(layer, len(kept)) for layer, kept in published_cuts]
        for (_, kept), (_, wanted) in zip(cuts, published_cuts, strict=True):
            assert {place for place in wanted if place >= 0} <= set(kept)
    assert off(logits[0], published[0]) < TOLERANCE
    if steps > 1:
        assert found == ids and off(logits, published) < TOLERANCE
    for layer, kept in trace.cuts if expect == "equal" else ():
        if (name := f"merged {case['name']} {layer}") in ARRAYS:
            end = RECORDED["prompts"][case["prompt"]]["prefix"] + len(kept)
            merged = ARRAYS[name]
            assert off(entering[layer + 1][0, end - len(merged) : end], merged) < TOLERANCE
    for step in range(1, len(ids)) if expect == "reread" else ():
        assert off(generate(decoder, case, 1, ids[:step])[0][0], published[step]) < TOLERANCE


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
def tiny(tmp_path_factory):
    """llava-tiny, and the image of each recorded question."""
    _, model, processor, _ = load_pretrained_model(CHECKPOINT, None, "llava-tiny", device="cpu")
    folder = tmp_path_factory.mktemp("eval")
    write_benchmarks(folder, questions=140, names=("gqa_mini",))
    lines = (folder / "gqa_mini" / "llava_gqa_testdev_balanced.jsonl").read_text().splitlines()
    files = {row["question_id"]: folder / "gqa_mini/data/images" / row["image"] for row in map(json.loads, lines)}
    names = [*RECORDED["questions"]]
    pixels = process_images([Image.open(files[name]) for name in names], processor, model.config)
    return model, dict(zip(names, pixels, strict=True))


@pytest.fixture(scope="module")
def full_size():
    model, fingerprint = peer_models.make_model()
    assert fingerprint == RECORDED["fingerprint"]  # else every other comparison is of another model
    return model, peer_models.make_images(4)


def batch_of(run, tiny, full_size):
    """Model, ids, mask and pixels of a run's prompts, and the place of each one's first image."""
    if run["model"] == "tiny":
        model, images = tiny
        rows = [torch.tensor(RECORDED["questions"][prompt["question"]]) for prompt in run["prompts"]]
        pixels = torch.stack([images[prompt["question"]] for prompt in run["prompts"]])
    else:
        model, images = full_size
        rows = peer_models.make_prompts(1, 17, 2) if run["images"] == 2 else peer_models.make_prompts(4)
        pixels = images[: len(rows) * run["images"]]
    return model, *pad_left(rows), pixels, [row.tolist().index(-200) for row in rows]


@pytest.mark.parametrize("name", [name for name in RUNS if name not in DIFFERENT])
@torch.no_grad()
def test_methods_before_and_beside_the_decoder(tiny, full_size, name):
    run = RUNS[name]
    model, ids, mask, pixels, firsts = batch_of(run, tiny, full_size)
    steps = max(len(prompt["tokens"]) for prompt in run["prompts"])
    with prune(model, run["config"]) as session:
        output = model.generate(
            ids,
            attention_mask=mask,
            images=pixels,
            do_sample=False,
            max_new_tokens=steps,
            output_logits=True,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
    logits, entered = torch.stack(output.logits, 1), output.hidden_states[0][0]
    for row, (prompt, first, trace) in enumerate(zip(run["prompts"], firsts, session.traces, strict=True)):
        assert output.sequences[row, : len(prompt["tokens"])].tolist() == prompt["tokens"]
        published = ARRAYS[f"logits {name} {row}"]
        assert off(logits[row, : len(published)], published) < TOLERANCE
        assert (trace.tokens_per_layer, trace.kv_tokens_per_layer) == (prompt["rows"], prompt["kv"])
        if "order" in prompt:
            cut = [(-1, sorted(first + patch for patch in prompt["order"]))]
            assert trace.cuts == cut or (run["config"]["share"] == 1 and len(prompt["order"]) == trace.visual_tokens)
        start = first
        for image in (
            [] if "dominant" not in prompt else prompt["dominant"] if run["images"] == 2 else [prompt["dominant"]]
        ):
            assert {start + token - 1 for token in image if token} <= set(trace.cuts[0][1])
            start += model.visual_tokens_per_image + 5
        if (key := f"entered {name} {row}") in ARRAYS:
            start = first + entered.shape[1] - prompt["rows"][0]  # the batch is padded on the left
            assert off(entered[row, start : start + len(ARRAYS[key])], ARRAYS[key]) < TOLERANCE


@torch.no_grad()
def test_known_differences_are_as_the_docstrings_say(tiny, full_size):
    def traces(name):
        run = RUNS[name]
        model, ids, mask, pixels, _ = batch_of(run, tiny, full_size)
        with prune(model, run["config"]) as session:
            model(input_ids=ids, attention_mask=mask, images=pixels)
        return session.traces, run["prompts"]

    with pytest.warns(UserWarning, match="nothing is pruned"):
        dense, prompts = traces("visionzip random [476, 100]")
    assert all(trace.visual_per_layer[0] == 576 and not trace.cuts for trace in dense)
    assert all(len(prompt["dominant"]) == 476 for prompt in prompts)
    one, prompts = traces("divprune random 0.0005")
    assert all(trace.visual_per_layer[0] == 1 for trace in one) and not any(prompt["order"] for prompt in prompts)
    (both,), (prompt,) = traces("divprune random two")
    assert both.visual_per_layer[0] == 288 and prompt["rows"][0] - (both.prompt_tokens - 1152) == 144 + 576
    with pytest.raises(ValueError, match="'k' is 20, but the model has 20 layers"):
        traces("vtw random 20")
    (gone,), (prompt,) = traces("vtw random two")
    assert gone.visual_per_layer[-1] == 0 and prompt["rows"][-1] - (gone.prompt_tokens - 1152) == 576


def test_divprune_chooses_in_the_published_order():
    """Equal vectors apart, which the published code chooses again and again."""
    vectors, equal = peer_models.choice_vectors(), 0
    for choice in RECORDED["choices"]:
        points = vectors[choice["kind"], choice["trial"]]
        unit = points / np.linalg.norm(points, axis=1, keepdims=True)
        found = most_diverse(1 - unit @ unit.T, choice["count"])
        assert len(set(found)) == choice["count"]
        if choice["kind"] != "duplicates":
            assert found == choice["order"]
            equal += 1
    assert equal == 60


@torch.no_grad()
def test_the_search_for_vtw_s_layer_measures_the_published_curve(full_size):
    model, images = full_size
    ids, mask = pad_left(peer_models.make_prompts(4))
    inputs, layers = {"input_ids": ids, "attention_mask": mask, "images": images}, range(5, 20)
    curve = next_token_kl(model, lambda: model(**inputs).logits[:, -1], layers)
    assert np.abs(curve.T - np.array(RECORDED["search"])).max() < TOLERANCE
    means = curve.mean(1)
    assert first_exit(curve, layers, means[7]).k == 5 + int((means <= means[7]).argmax())
    with pytest.raises(ValueError, match="no layer's mean KL to dense is at most 0; the smallest is"):
        first_exit(curve, layers, 0)
