"""The random control: as many tokens as asked, seeded, the same in a batch as alone."""

import pytest
from conftest import MIXED, Prompts

from llava.model.pruning import PruningConfig, prune

CONFIG = {"method": "random", "layer": 2, "keep": 5}


def test_it_keeps_that_many_tokens_after_that_layer_and_drops_them_at_the_exit(llama):
    prompts = Prompts(*MIXED)
    with prune(llama, {**CONFIG, "exit_layer": 4}, prompts.visual) as session:
        llama(**prompts.inputs)
    for kind, trace in zip(MIXED, session.traces, strict=True):
        visual = kind.count("v")
        assert trace.visual_per_layer == [visual] * 3 + [min(visual, 5)] + [0, 0]
        assert len(trace.kept) == min(visual, 5) and len(set(trace.kept)) == len(trace.kept)
        assert trace.exit_layer == (4 if visual else None)
        assert trace.influence == []


def test_the_draw_depends_on_the_seed_alone(llama):
    prompts, kept = Prompts(MIXED[0]), []
    for seed in (0, 0, 1):
        with prune(llama, {**CONFIG, "seed": seed}, prompts.visual) as session:
            llama(**prompts.inputs)
        kept.append(session.traces[0].kept)
    assert kept[0] == kept[1] != kept[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "random", "layer": 2}, "needs 'keep'"),
        ({**CONFIG, "keep": -1}, "integer ≥ 0"),
        ({**CONFIG, "exit_layer": 2}, "integer ≥ 3"),
        ({**CONFIG, "keeps": 2}, "did you mean 'keep'"),
    ],
)
def test_mistakes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig.from_dict(settings)


def test_boundaries_are_checked_against_the_models_depth():
    with pytest.raises(ValueError, match="'layer' is 6, but the model has 6 layers"):
        PruningConfig.from_dict({**CONFIG, "layer": 6}).check_layers(6)


def test_without_a_layer_the_draw_is_before_the_decoder_alone_or_before_another_method(llama):
    prompts = Prompts(*MIXED)
    before = {"method": "random", "share": 0.5, "seed": 3}
    with prune(llama, before, prompts.visual) as alone:
        llama(**prompts.inputs)
    with prune(llama, {**CONFIG, "before": before}, prompts.visual) as composed:
        llama(**prompts.inputs)
    for kind, first, both in zip(MIXED, alone.traces, composed.traces, strict=True):
        half = round(kind.count("v") / 2)
        assert first.visual_per_layer == [half] * 6
        assert (first.prompt_tokens, first.visual_tokens) == (len(kind), kind.count("v"))
        assert first.dense_flops() == 6 * first.shape.layer_flops(kind.count("v"))
        assert both.visual_per_layer == [half] * 3 + [min(half, 5)] * 3
        if half:
            assert set(both.kept) <= set(first.cuts[0][1])
