"""Replay: recorded decisions give the recorded run again; given plans need no recording; nothing is measured."""

import json

import pytest
import torch
from conftest import FULL, MIXED, Prompts

from llava.model.pruning import PruningConfig, probes, prune

PYRAMID = {"method": "pyramiddrop", "before": {"method": "divprune", "keep": 12}}


@pytest.fixture
def no_probes(monkeypatch):
    def refuse(*_):
        raise AssertionError("a replay measured something")

    return lambda: monkeypatch.setattr(probes, "run", refuse) or monkeypatch.setattr(probes, "fetch", refuse)


@pytest.mark.parametrize(
    "config", [FULL, {**FULL, "preset": "released"}, {"mode": ["deep"], "mid_deep_layer": 3}, PYRAMID]
)
@pytest.mark.parametrize("row", range(len(MIXED)))
def test_a_trace_replayed_is_the_run_again(llama, config, row, no_probes):
    prompts = Prompts(*MIXED).single(row)
    with prune(llama, config, prompts.visual) as session:
        expected = llama(**prompts.inputs)
    trace = session.traces[0]
    no_probes()
    plan = {"method": "replay", "trace": json.loads(json.dumps(trace.to_dict()))}
    with prune(llama, plan, prompts.visual) as again:
        output = llama(**prompts.inputs)
    replayed = again.traces[0]
    assert (output.logits[:, -1] - expected.logits[:, -1]).abs().max() < 1e-6
    assert (replayed.cuts, replayed.exit_layer) == (trace.cuts, trace.exit_layer)
    assert (replayed.tokens_per_layer, replayed.rules) == (trace.tokens_per_layer, trace.rules)
    assert replayed.kv_tokens_per_layer == trace.kv_tokens_per_layer
    assert replayed.flops() == trace.flops() and replayed.probes == []
    if trace.kept:
        assert (replayed.filter_layer, replayed.kept) == (trace.filter_layer, trace.kept)


@pytest.mark.parametrize("config", [{**FULL, "mode": ["middle", "deep"]}, PYRAMID])
def test_an_answers_line_is_a_plan_too(llama, config):
    prompts = Prompts(MIXED[0])
    with prune(llama, config, prompts.visual) as session:
        llama(**prompts.inputs)
    line = {"question_id": 3, "metadata": json.loads(json.dumps(session.traces[0].summary()))}
    with prune(llama, {"method": "replay", "trace": line}, prompts.visual) as again:
        llama(**prompts.inputs)
    assert again.traces[0].cuts == session.traces[0].cuts


def test_a_given_plan_spreads_its_tokens_over_any_prompt(llama):
    prompts = Prompts(*MIXED)
    plan = {"method": "replay", "filter_layer": 1, "keep": 4, "exit_layer": 4, "shallow_layers": 1}
    with prune(llama, plan, prompts.visual) as session:
        llama(**prompts.inputs)
    for kind, trace in zip(MIXED, session.traces, strict=True):
        visual, text = kind.count("v"), kind.count("t")
        left = min(visual, 4)
        assert trace.visual_per_layer == [visual, visual, left, left, 0, 0]
        assert trace.kv_tokens_per_layer == [text + min(visual, 1), text + visual, text + left, text + left, text, text]
        assert trace.rules[0].text == "merge" and trace.rules[1].dense
        if visual:
            gaps = torch.tensor(
                [[j for j, x in enumerate(kind) if x == "v"].index(place) for place in trace.kept]
            ).diff()
            assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    "settings",
    [
        {"filter_layer": 2, "keep": 4},
        {"filter_layer": 2, "keep": [5, 6], "exit_layer": 5, "shallow_layers": 2},
        {"exit_layer": 3},
        {"cuts": [[-1, 12], [2, [4, 5]], [4, 0]]},
    ],
)
def test_plans_round_trip_through_json(settings):
    config = PruningConfig.from_dict({"method": "replay", **settings})
    assert PruningConfig.from_json(json.dumps(config.to_dict())) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs one of 'trace', 'cuts'"),
        ({"filter_layer": 2}, "'filter_layer' and 'keep' together"),
        ({"filter_layer": 2, "keep": 3, "cuts": []}, "needs one of"),
        ({"filter_layer": 2, "keep": 3, "exit_layer": 3}, "'exit_layer' must be an integer ≥ 4"),
        ({"filter_layer": 2, "keep": [3, -1]}, "'keep' must be an integer ≥ 0"),
        ({"cuts": [[3, 2], [3, 1]]}, "'cuts' must be an integer ≥ 4"),
        ({"cuts": [3]}, r"list of \[layer, keep\].*got int 3|\[layer, keep\], got int 3"),
        ({"cuts": {"3": 2}}, r"list of \[layer, keep\], got dict"),
        ({"trace": {"kept": []}}, "without 'tokens_per_layer'"),
        ({"trace": "trace.json"}, "got str"),
        ({"exit_layer": 3, "rules": [["dense", "dense", 0]], "shallow_layers": 1}, "exclude each other"),
        ({"exit_layer": 3, "rules": [["dens", "dense", 0]]}, "did you mean 'dense'"),
    ],
)
def test_mistakes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig.from_dict({"method": "replay", **settings})


def test_plans_must_fit_the_model_and_the_prompt(llama):
    prompts = Prompts(MIXED[0])
    with pytest.raises(ValueError, match="reaches layer 6, but the model has 6 layers"):
        prune(llama, {"method": "replay", "filter_layer": 5, "keep": 3, "exit_layer": 7}, prompts.visual)
    with pytest.raises(ValueError, match="of a model with 1 layers, this one has 6"):
        prune(llama, {"method": "replay", "cuts": [], "rules": [["merge", "remove", 0]]}, prompts.visual)
    missing = pytest.raises(ValueError, match="keeps position 1 after layer 2, where this prompt has no visual token")
    with prune(llama, {"method": "replay", "filter_layer": 2, "keep": [1, 5]}, prompts.visual), missing:
        llama(**prompts.inputs)
