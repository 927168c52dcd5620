"""Every method against its slow reference (tests/methods_reading.py): cuts, logits, and a decoded token, in a batch."""

import methods_reading as plain
import numpy as np
import pytest
import torch
from conftest import MIXED, Prompts, random_llama

from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.methods import FastV

TOLERANCE = 3e-5
EVEN = ("tttt" + "v" * 20 + "ttttt", "tt" + "v" * 8 + "t" + "v" * 12 + "tttt", "ttttttt", "v" * 20 + "tttttt")
"""Prompts that have the number of visual tokens that counted plans are meant for."""

CASES = {
    "none": ({}, [], MIXED),
    "fastv": ({}, [(plain.fastv, 2, 0.5)], MIXED),
    "fastv k=4": ({"k": 4, "r": 0.8}, [(plain.fastv, 4, 0.8)], MIXED),
    "vtw": ({"k": 3}, [(plain.vtw, 3)], MIXED),
    "vtw at half depth": ({}, [(plain.vtw, 3)], MIXED),
    "vtw without vision": ({"k": 0}, [(plain.vtw, 0)], MIXED),
    "vtw without vision after divprune": (
        {"k": 0, "before": {"method": "divprune", "keep": 9}},
        [(plain.divprune, 9), (plain.vtw, 0)],
        MIXED,
    ),
    "pyramiddrop": ({}, [(plain.pyramiddrop, [1, 3, 4], [0.5, 0.25, 0.125])], MIXED),
    "pyramiddrop compact": (
        {"layers": [2, 4], "ratios": [0.7, 0.2], "positions": "compact"},
        [(plain.pyramiddrop, [2, 4], [0.7, 0.2], True)],
        MIXED,
    ),
    "attention_topk last": ({"layer": 2, "keep": 4}, [(plain.attention_topk, 2, 4, "last")], MIXED),
    "attention_topk text": ({"layer": 2, "keep": 4, "rank": "text"}, [(plain.attention_topk, 2, 4, "text")], MIXED),
    "attention_topk visual": (
        {"layer": 3, "keep": 6, "rank": "visual"},
        [(plain.attention_topk, 3, 6, "visual")],
        MIXED,
    ),
    "fitprune": (
        {"keep": [20, 14, 14, 9, 3, 0], "visual_tokens": 20},
        [(plain.fitprune, [20, 14, 14, 9, 3, 0])],
        EVEN,
    ),
    "divprune": ({"keep": 7}, [(plain.divprune, 7)], MIXED),
    "divprune compact": ({"keep": 7, "positions": "compact"}, [(plain.divprune, 7, True)], MIXED),
    "cdpruner": ({"keep": 7}, [(plain.cdpruner, 7)], MIXED),
    "dart": ({"keep": 13}, [(plain.dart, 2, 13)], MIXED),
    "dart few": ({"k": 3, "share": 0.3, "visual_pivots": 8, "text_pivots": 2}, [(plain.dart, 3, 6, 8, 2)], EVEN),
    "sparsevlm": (
        {"layers": [1, 3], "keep": [8, 3], "visual_tokens": 20, "cluster": 2},
        [(plain.sparsevlm, [1, 3], [8, 3], 2)],
        EVEN,
    ),
    "sparsevlm compact": (
        {"layers": [0, 2], "keep": [6, 2], "visual_tokens": 20, "cluster": 2, "positions": "compact", "recycle": 0.6},
        [(plain.sparsevlm, [0, 2], [6, 2], 2, 0.6, True)],
        EVEN,
    ),
    "sparsevlm adaptive": (
        {"layers": [1, 3], "scale": 2.5, "bias": 1, "cluster": 2},
        [(plain.sparsevlm, [1, 3], None, 2, 0.3, False, 2.5, 1)],
        MIXED,
    ),
    "fastv after divprune": (
        {"before": {"method": "divprune", "keep": 9}},
        [(plain.divprune, 9), (plain.fastv, 2, 0.5)],
        MIXED,
    ),
    "sparsevlm after compact divprune": (
        {
            **{"layers": [1, 3], "keep": [6, 2], "visual_tokens": 12, "cluster": 2},
            "before": {"method": "divprune", "keep": 12, "positions": "compact"},
        },
        [(plain.divprune, 12, True), (plain.sparsevlm, [1, 3], [6, 2], 2)],
        EVEN,
    ),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_the_engine_agrees_with_the_plain_reading(llama, name, seed):
    settings, readers, kinds = CASES[name]
    prompts = Prompts(*kinds, seed=seed)
    with prune(llama, {"method": name.split()[0], **settings}, prompts.visual) as session:
        output = llama(**prompts.inputs, use_cache=True)
        step = llama(input_ids=torch.full((len(kinds), 1), 7), past_key_values=output.past_key_values).logits
    for row, trace in enumerate(session.traces):
        alone = prompts.single(row)
        readings = [make(*arguments) for make, *arguments in readers]
        expected = plain.read(llama, alone.embeds[0], alone.visual[0].tolist(), *readings)
        assert trace.tokens_per_layer == expected.tokens_per_layer
        assert trace.cuts == expected.cuts
        assert (output.logits[row, -1] - expected.logits).abs().max() < TOLERANCE
        assert (step[row, -1] - plain.decode(llama, expected, 7)).abs().max() < TOLERANCE
        assert trace.visual_tokens == kinds[row][:-1].count("v")
        assert trace.dense_flops() == 6 * trace.shape.layer_flops(trace.visual_tokens)


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "divprune", "dart", "fastv after divprune", "fitprune"])
def test_rectified_attention_counts_each_token_for_those_that_it_stands_for(llama, name):
    """Prefill, later choices by attention, and decoding, against the reading with log counts added to its scores."""
    settings, readers, kinds = CASES[name]
    prompts = Prompts(*kinds)
    config = {"method": name.split()[0], **settings, "rectify": True}
    with prune(llama, config, prompts.visual) as session:
        output = llama(**prompts.inputs, use_cache=True)
        tokens = torch.full((len(kinds), 1), 7)
        step = llama(input_ids=tokens, past_key_values=output.past_key_values).logits
    with prune(llama, config | {"rectify": False}, prompts.visual):
        plainly = llama(**prompts.inputs).logits[:, -1]
    assert (output.logits[:, -1] - plainly).abs().max() > 1e-3
    for row, trace in enumerate(session.traces):
        alone = prompts.single(row)
        readings = [make(*arguments) for make, *arguments in readers]
        expected = plain.read(llama, alone.embeds[0], alone.visual[0].tolist(), *readings, rectify=True)
        assert trace.cuts == expected.cuts
        assert (output.logits[row, -1] - expected.logits).abs().max() < TOLERANCE
        assert (step[row, -1] - plain.decode(llama, expected, 7)).abs().max() < TOLERANCE


def test_rectified_beams_decode_as_greedy_alone_and_the_prefix_cache_is_left_out(llama):
    config = {"method": "fastv", "rectify": True}
    prompts = Prompts(*MIXED)
    beams = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    with pytest.warns(UserWarning, match="method 'fastv' rectifies attention"):
        session = prune(llama, config, prompts.visual, prefix_cache=True)
    with session:
        together = llama.generate(**prompts.inputs, **beams)
    for row in range(len(MIXED)):
        alone = prompts.single(row)
        with prune(llama, config, alone.visual):
            assert llama.generate(**alone.inputs, **beams)[0].tolist() == together[row].tolist()
    assert "rectify" not in FastV(rectify=False).to_dict() and FastV(rectify=True).to_dict()["rectify"] is True
    with pytest.raises(ValueError, match="'rectify' counts tokens that were dropped"):
        PruningConfig.from_dict({"method": "schedule", "enter": 2, "rectify": True})


def test_influence_as_rank_keeps_the_longest_contributions(llama):
    prompts, config = Prompts(MIXED[0]), {"method": "attention_topk", "layer": 3, "rank": "influence"}
    with prune(llama, {**config, "keep": 5}, prompts.visual) as five:
        llama(**prompts.inputs)
    with prune(llama, {**config, "share": 1}, prompts.visual) as everyone:
        llama(**prompts.inputs)
    order = np.argsort(everyone.traces[0].influence)[::-1][:5]
    assert five.traces[0].kept == sorted(np.array(everyone.traces[0].kept)[order].tolist())
    assert [probe.layer for probe in five.traces[0].probes] == [3]


def test_rows_in_chunks_are_the_rows_at_once(llama, monkeypatch):
    from llava.model.pruning import probes

    prompts, config = Prompts(*MIXED), {"method": "attention_topk", "layer": 1, "keep": 4, "rank": "visual"}
    with prune(llama, config, prompts.visual) as whole:
        llama(**prompts.inputs)
    monkeypatch.setattr(probes, "CHUNK", 3)
    with prune(llama, config, prompts.visual) as chunked:
        llama(**prompts.inputs)
    assert [trace.kept for trace in chunked.traces] == [trace.kept for trace in whole.traces]


@pytest.mark.parametrize("before", ["visipruner", "random"])
def test_a_composition_is_the_second_method_on_the_prompt_that_the_first_leaves(llama, before):
    """Dropping tokens by hand, at their positions, and pruning the rest is the same as `before`."""
    from conftest import FULL

    inside = FULL if before == "visipruner" else {"method": "random", "layer": 2, "keep": 3}
    prompts = Prompts(MIXED[1])
    with prune(llama, {**inside, "before": {"method": "divprune", "keep": 12}}, prompts.visual) as session:
        composed = llama(**prompts.inputs).logits[0, -1]
    trace = session.traces[0]
    assert trace.cuts[0][0] == -1 and len(trace.cuts[0][1]) == trace.visual_per_layer[0] == 12
    kept = [j for j, letter in enumerate(MIXED[1]) if letter == "t" or j in trace.cuts[0][1]]
    with prune(llama, inside, prompts.visual[:, kept]) as by_hand:
        left = llama(inputs_embeds=prompts.embeds[:, kept], position_ids=torch.tensor([kept])).logits[0, -1]
    assert (composed - left).abs().max() < 1e-5
    assert [kept[place] for place in by_hand.traces[0].kept] == trace.kept
    assert by_hand.traces[0].tokens_per_layer == trace.tokens_per_layer
    assert trace.dense_flops() > by_hand.traces[0].dense_flops()


@pytest.mark.parametrize("name", [name for name in CASES if "compact" in name or "sparsevlm" in name])
def test_beams_on_renumbered_positions_decode_as_greedy_does_alone(llama, name):
    """A beam of one prompt among others equals that prompt alone: reordering keeps each layer's positions."""
    settings, _, kinds = CASES[name]
    config = {"method": name.split()[0], **settings}
    prompts = Prompts(*kinds)
    beams = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    with prune(llama, config, prompts.visual):
        together = llama.generate(**prompts.inputs, **beams)
    for row in range(len(kinds)):
        alone = prompts.single(row)
        with prune(llama, config, alone.visual):
            assert llama.generate(**alone.inputs, **beams)[0].tolist() == together[row].tolist()


def test_probing_waits_for_the_device_once_a_layer(llama, monkeypatch):
    """All prompts of a batch, and all that they ask for, come to the host in one transfer."""
    from llava.model.pruning import probes

    calls, fetch = [], probes.fetch
    monkeypatch.setattr(probes, "fetch", lambda tensors: calls.append(len(tensors)) or fetch(tensors))
    prompts = Prompts(*EVEN)
    with prune(llama, {"method": "sparsevlm", **CASES["sparsevlm"][0]}, prompts.visual):
        llama(**prompts.inputs)
    assert calls == [3, 12, 12]  # raters before layer 0; four tensors of three prompts at each of two layers


def test_half_precision_prunes_too():
    model, prompts = random_llama().to(torch.bfloat16), Prompts(*EVEN)
    inputs = {**prompts.inputs, "inputs_embeds": prompts.embeds.to(torch.bfloat16)}
    for name in ("sparsevlm", "pyramiddrop compact", "divprune", "fitprune"):
        with prune(model, {"method": name.split()[0], **CASES[name][0]}, prompts.visual) as session:
            assert model(**inputs).logits.dtype == torch.bfloat16
        assert all(trace.flops() < trace.dense_flops() for trace in session.traces if trace.visual_tokens)


def test_prompts_picked_from_a_cache_keep_their_own_positions(llama):
    """After compact pruning each prompt decodes at positions of its own, in every layer, in whatever order."""
    settings, _, kinds = CASES["sparsevlm compact"]
    prompts, picked = Prompts(*kinds), [3, 0]
    with prune(llama, {"method": "sparsevlm", **settings}, prompts.visual):
        cache = llama(**prompts.inputs).past_key_values
        whole = llama(input_ids=torch.full((4, 1), 6), past_key_values=cache).logits
        cache = llama(**prompts.inputs).past_key_values
        cache.batch_select_indices(torch.tensor(picked))
        chosen = llama(input_ids=torch.full((2, 1), 6), past_key_values=cache).logits
    assert (chosen - whole[picked]).abs().max() < 1e-5
