"""Schedules against their slow reading (tests/schedule_reading.py): decisions, logits, decoding, losses, gradients."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import schedule_reading as slow
import torch
from conftest import MIXED, Prompts, random_llama

from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.methods.schedule import leading
from llava.model.pruning.shapes import MODELS

HIDROP = {"method": "schedule", "enter": 1, "keep": {"3": 9, "4": 3}, "exit": 5}
VICA = {"method": "schedule", "frozen": True, "read": [0, 2, 3], "system": "zero"}
CASES = {
    "hidrop": HIDROP,
    "enter alone": {"method": "schedule", "enter": 3},
    "thinned to nothing": {"method": "schedule", "keep": {"1": 7, "2": 5, "4": 0}},
    "vica": VICA,
    "vica 13B": {"method": "schedule", "frozen": True, "read": [0, 1, 5]},
    "frozen in all layers": {"method": "schedule", "frozen": True},
    "system rows alone": {"method": "schedule", "exit": 4, "system": "zero"},
}
PAPER = {
    "Tok48": ({"10": 87, "14": 10, "16": 5, "18": 1}, 48.00, 0.317),
    "Tok64": ({"10": 215, "14": 10, "16": 5, "18": 1}, 64.00, 0.421),
    "Tok80": ({"10": 453, "13": 10, "16": 5, "19": 1}, 80.03, 0.529),
    "C1": ({"10": 112, "13": 10, "16": 5, "19": 1}, 48.06, 0.317),
}


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_is_read_and_continued_as_the_slow_reading_does(llama, name):
    prompts = Prompts(*MIXED, seed=1)
    with prune(llama, CASES[name], prompts.visual) as session:
        output = llama(**prompts.inputs, use_cache=True)
        step = llama(input_ids=torch.full((4, 1), 7), past_key_values=output.past_key_values).logits
    for row, trace in enumerate(session.traces):
        alone, length = prompts.single(row), len(MIXED[row])
        expected = slow.read(llama, alone.embeds[0], alone.visual[0].tolist(), CASES[name])
        assert trace.tokens_per_layer == [len(rows) for rows in expected.runs]
        assert trace.kv_tokens_per_layer == [len(rows) for rows in expected.seen]
        assert trace.cuts == expected.cuts
        assert (output.logits[row, -len(expected.rows) :] - expected.logits).abs().max() < 3e-5
        assert (step[row, -1] - slow.decode(llama, expected, 7, length)).abs().max() < 3e-5


LABELLED = ("tttt" + "v" * 12 + "ttAAtttAA", "tv" + "v" * 10 + "AAAtt", "tttAAt", "tt" + "v" * 8 + "tttt")
"""Prompts with answers (A): of several turns, right behind the image, without image, and one without any answer."""


def labelled(seed: int) -> tuple[Prompts, torch.Tensor]:
    """Right-padded prompts, as a trainer pads, and their labels [B, T]."""
    prompts = Prompts(*(kind.replace("A", "t") for kind in LABELLED), seed=seed)
    labels = torch.randint(3, 90, prompts.visual.shape, generator=torch.Generator().manual_seed(seed))
    for row, kind in enumerate(LABELLED):
        shift = len(kind) - prompts.visual.shape[1]
        for name in ("embeds", "attention_mask", "visual"):
            getattr(prompts, name)[row] = getattr(prompts, name)[row].roll(shift, 0)
        labels[row, [j for j in range(labels.shape[1]) if kind[j : j + 1] != "A"]] = -100
    return prompts, labels


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("name", ["hidrop", "thinned to nothing", "vica", "system rows alone"])
def test_loss_and_gradients_are_those_of_the_slow_reading(name, reentrant, monkeypatch):
    """Also of the embeddings, which is what the projector learns by; decisions are made once, in the forward pass."""
    from llava.model.pruning import probes

    model = random_llama().double().train().requires_grad_(True)
    prompts, labels = labelled(seed=2)
    prompts.embeds = prompts.embeds.double().requires_grad_(True)
    if reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    fetched, fetch = [], probes.fetch
    monkeypatch.setattr(probes, "fetch", lambda tensors: fetched.append(1) or fetch(tensors))
    with prune(model, CASES[name], prompts.visual) as session:
        output = model(**prompts.inputs, labels=labels, num_items_in_batch=torch.tensor(3))
    decisions = len(fetched)
    output.loss.backward()
    assert len(fetched) == decisions == sum(count > 0 for count in CASES[name].get("keep", {}).values())
    found = [prompts.embeds.grad, *(parameter.grad for parameter in model.parameters())]

    other = random_llama().double().requires_grad_(True)
    embeds = prompts.embeds.detach().clone().requires_grad_(True)
    total = counted_rows = 0
    for row, (kind, trace) in enumerate(zip(LABELLED, session.traces, strict=True)):
        some = slice(0, len(kind))
        expected = slow.read(
            other, embeds[row, some], prompts.visual[row, some].tolist(), CASES[name], labels[row, some].tolist()
        )
        assert trace.tokens_per_layer == [len(rows) for rows in expected.runs]
        assert trace.cuts == expected.cuts
        total, counted_rows = total + expected.loss / 3, counted_rows + expected.counted
    total.backward()
    assert output.logits.shape[:2] == (1, counted_rows) and counted_rows in (8, 9)  # 8: the row before it has left
    assert (output.loss - total).abs() < 1e-5 * total
    for mine, theirs in zip(found, [embeds.grad, *(p.grad for p in other.parameters())], strict=True):
        if theirs is not None:
            assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


def test_ties_at_the_border_all_stay():
    scores = np.array([3, 1, 2, 2, 2, 0], np.float32)
    assert leading(scores, 2).tolist() == [True, False, True, True, True, False]
    assert leading(scores, 4).tolist() == [True, False, True, True, True, False]
    assert leading(scores, 1).sum() == 1
    for count in range(8):
        beaten = [(scores > one).sum() < count for one in scores]
        assert leading(scores, count).tolist() == beaten


def counted(config: dict):
    """The trace of a prompt of 576 visual tokens in a narrow decoder of 32 layers, its shape LLaVA-1.5-7B's."""
    model = random_llama(layers=32, hidden=24, heads=4, kv_heads=4)
    prompts = Prompts("tt" + "v" * 576 + "tt", hidden=24)
    with torch.no_grad(), prune(model, config, prompts.visual) as session:
        model(**prompts.inputs)
    return replace(session.traces[0], shape=MODELS["LLaVA-1.5-7B"].shape)


@pytest.mark.parametrize("name", PAPER)
def test_the_flops_of_hidrop(name):
    keep, mean, flops = PAPER[name]
    trace = counted({"method": "schedule", "enter": 8, "keep": keep, "exit": 24})
    assert round(trace.flops() / 1e12, 3) == flops
    assert sum(trace.visual_per_layer) / 32 == pytest.approx(mean, abs=0.005)
    assert trace.visual_per_layer[:11] == [0] * 8 + [576] * 2 + [keep["10"]] and trace.exit_layer == 24
    assert trace.kv_tokens_per_layer == [4 + count for count in trace.visual_per_layer]


def test_the_flops_of_vica():
    trace = counted({"method": "schedule", "frozen": True, "read": [0, 1, 7, 8, 9, 10, 11, 14], "system": "zero"})
    assert round(trace.flops() / 1e12, 3) == 0.155
    assert round(100 * trace.flops() / trace.dense_flops(), 2) == 4.05
    text = trace.shape.layer_flops(4, 16)
    assert trace.flops("all") == 32 * text + trace.flops() + 8 * 2 * 4 * 576 * 4096
    assert trace.exit_layer == 15 and sum(trace.kv_tokens_per_layer) == 32 * 4 + 8 * 576


@pytest.mark.parametrize("name", ["hidrop", "vica"])
def test_a_plan_is_replayed(llama, name):
    prompts = Prompts(MIXED[0])
    with prune(llama, CASES[name], prompts.visual) as session:
        expected = llama(**prompts.inputs).logits
    plan = PruningConfig.from_dict({"method": "replay", "trace": session.traces[0].to_dict()})
    assert PruningConfig.from_dict(plan.to_dict()) == plan
    with prune(llama, plan, prompts.visual) as again:
        assert torch.equal(llama(**prompts.inputs).logits, expected)
    assert replace(again.traces[0], filter_layer=None, influence=[]) == replace(
        session.traces[0], filter_layer=None, influence=[]
    )


def test_random_draws_are_others_in_each_step_of_training_and_the_same_at_inference(llama):
    config = {"method": "schedule", "keep": {"2": 4}, "rank": "random"}
    prompts, labels = labelled(seed=0)
    for more, draws in (({}, 1), ({"labels": labels}, 3)):
        with prune(llama, config, prompts.visual) as session:
            for _ in range(3):
                llama(**prompts.inputs, **more)
        assert len({tuple(trace.kept) for trace in session.traces[::4]}) == draws
        assert session.traces[3].cuts == [] if more else session.traces[3].cuts


def test_influence_of_one_answer_is_influence_on_its_last_row(llama):
    """A prompt whose answer follows its last token but one: the same row asks with labels and without."""
    config = {"method": "schedule", "keep": {"3": 5}, "rank": "influence"}
    whole = Prompts("ttt" + "v" * 12 + "tttt")
    short = Prompts("ttt" + "v" * 12 + "ttt")
    short.embeds = whole.embeds[:, :-1]
    labels = torch.full((1, 19), -100)
    labels[0, -1] = 5
    with prune(llama, config, short.visual) as asked:
        llama(**short.inputs)
    with prune(llama, config, whole.visual) as trained:
        llama(**whole.inputs, labels=labels)
    assert trained.traces[0].kept == asked.traces[0].kept
    assert np.allclose(trained.traces[0].influence, asked.traces[0].influence, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs 'enter', 'keep', 'exit' or 'frozen'"),
        ({"frozen": True, "enter": 2}, "'frozen' tokens run in no layer"),
        ({"read": [1]}, "give 'frozen': true"),
        ({"enter": 4, "keep": {"4": 9}}, "must rise from layer to layer, got 4 after 4"),
        ({"keep": {"2": 5, "3": 6}}, "'keep' must fall from layer to layer, got 6 after 5"),
        ({"keep": {"two": 5}}, "'keep' must be an integer ≥ 1, got str 'two'"),
        ({"keep": {"2": 5}, "exit": 2}, "must rise from layer to layer, got 2 after 2"),
        ({"exit": 9}, "'exit' is 9, but the model has 6 layers"),
        ({"keep": {"6": 3}}, "'keep' is 6, but the model has 6 layers"),
    ],
)
def test_schedules_that_cannot_be(llama, settings, message):
    if "read" in settings:
        settings = {"enter": 1, **settings}
    with pytest.raises(ValueError, match=message):
        prune(llama, {"method": "schedule", **settings}, torch.ones(1, 4, dtype=torch.bool))


def test_configs_are_written_as_they_are_read():
    for config in CASES.values():
        written = PruningConfig.from_dict(config).to_dict()
        assert PruningConfig.from_dict(written) == PruningConfig.from_dict(config)
        assert written["keep"] == config.get("keep", {})
    assert deepcopy(PruningConfig.from_dict(HIDROP)) == PruningConfig.from_dict(HIDROP)
