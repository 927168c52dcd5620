"""Settings of the methods: JSON round trips, defaults by depth, one-line errors, budgets."""

import json
import warnings

import pytest
from conftest import MIXED, Prompts
from family_models import CASES
from method_examples import EXAMPLES

from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.methods import METHODS

BEFORE = [name for name, cls in METHODS.items() if cls.before_decoder is True or name == "random"]


@pytest.mark.parametrize("before", [None, *BEFORE])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_round_trips_through_json_alone_and_after_another(name, before):
    settings = dict(EXAMPLES[name])
    settings.pop("before", None)
    if before is not None:
        own = {"visionzip": {}, "dycoke": {}, "frames": {"count": 8}}
        stage = {"method": before} | own.get(before, {"keep": 288})
        settings["before"] = stage
    config = PruningConfig.from_dict(settings)
    assert PruningConfig.from_json(json.dumps(config.to_dict())) == config
    assert (config.before is None) == (before is None)
    assert [stage.method for stage in config.stages] == [*([before] if before else []), name]


@pytest.mark.parametrize(
    ("settings", "layers", "filled"),
    [
        ({"method": "vtw"}, 32, {"k": 16}),
        ({"method": "vtw"}, 40, {"k": 20}),
        ({"method": "vtw", "k": 3}, 32, {}),
        ({"method": "pyramiddrop"}, 32, {"layers": [8, 16, 24]}),
        ({"method": "pyramiddrop", "ratios": [0.4]}, 28, {"layers": [14]}),
        ({"method": "sparsevlm"}, 32, {"layers": [2, 6, 15]}),
        ({"method": "sparsevlm"}, 48, {"layers": [3, 9, 23]}),
    ],
)
def test_open_settings_follow_the_depth(settings, layers, filled):
    assert PruningConfig.from_dict(settings).filled_in(layers) == filled


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "fastv", "k": 0}, "'k' must be an integer ≥ 1"),
        ({"method": "fastv", "r": 1.5}, "'r' must be a number from 0 to 1"),
        ({"method": "fastv", "ratio": 0.5}, "unknown key 'ratio'.*known keys of 'fastv'"),
        ({"method": "vtw", "k": -1}, "'k' must be an integer ≥ 0"),
        ({"method": "pyramiddrop", "ratios": []}, "'ratios' must be a list of numbers"),
        ({"method": "pyramiddrop", "ratios": [0.5, 0.6]}, "'ratios' must fall from stage to stage"),
        ({"method": "pyramiddrop", "layers": [4, 4], "ratios": [0.5, 0.2]}, "'layers' must rise"),
        ({"method": "pyramiddrop", "layers": [4]}, "names 1 stages and 'ratios' 3"),
        ({"method": "pyramiddrop", "positions": "kept"}, "'positions' must be one of 'original', 'compact'"),
        ({"method": "attention_topk", "keep": 3}, "needs 'layer'"),
        ({"method": "attention_topk", "layer": 3}, "needs 'keep' or 'share'.*neither"),
        ({"method": "attention_topk", "layer": 3, "keep": 2, "share": 0.5}, "'keep' or 'share'.*both"),
        ({"method": "attention_topk", "layer": 3, "keep": 2, "rank": "texts"}, "did you mean 'text'"),
        ({"method": "attention_topk", "layer": 3, "keep": 2, "exit_layer": 4}, "'exit_layer' must be an integer ≥ 5"),
        ({"method": "divprune", "keep": 0}, "'keep' must be an integer ≥ 1"),
        ({"method": "divprune", "share": 2}, "'share' must be a number from 0 to 1"),
        ({"method": "sparsevlm", "keep": [3], "scale": 2}, "give one of them"),
        ({"method": "sparsevlm", "layers": [3, 2, 1]}, "'layers' must rise"),
        ({"method": "sparsevlm", "layers": [3, 5]}, "names 2 and 'keep' 3"),
        ({"method": "sparsevlm", "recycle": 3}, "'recycle' must be a number from 0 to 1"),
        ({"method": "fitprune"}, "needs 'keep'"),
        ({"method": "fitprune", "keep": [3, 4], "visual_tokens": 9}, "must not rise"),
        ({"method": "fitprune", "keep": [10], "visual_tokens": 9}, "nor above 'visual_tokens'"),
        ({"method": "visionzip", "dominant": 0}, "'dominant' must be an integer ≥ 1"),
        ({"method": "visionzip", "class_token": 1}, "must be true or false"),
        ({"method": "none", "keep": 3}, "unknown key 'keep'"),
        ({"method": "none", "before": {"method": "fastv"}}, "before the decoder .random, cdpruner, divprune.*fastv"),
        ({"method": "none", "before": {"method": "random", "layer": 2, "keep": 3}}, "names no layer"),
        ({"method": "none", "before": {"method": "divprune", "keep": -3}}, "'keep' must be an integer ≥ 1"),
        ({"method": "none", "before": {"method": "divprun"}}, "did you mean 'divprune'"),
        ({"method": "none", "before": 288}, "a dict, JSON text or a .json path, got int"),
        (
            {
                "method": "none",
                "before": {"method": "divprune", "keep": 9, "before": {"method": "random", "keep": 12}},
            },
            "'before' takes a method",
        ),
    ],
)
def test_mistakes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        PruningConfig.from_dict(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "fastv", "k": 6}, "'k' is 6, but the model has 6 layers"),
        ({"method": "vtw", "k": 6}, "'k' is 6, but the model has 6 layers"),
        ({"method": "pyramiddrop", "layers": [2, 4, 8]}, "'layers' is 8, but the model has 6 layers"),
        ({"method": "pyramiddrop", "ratios": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]}, "cannot be cut into 7 stages"),
        ({"method": "sparsevlm", "layers": [2, 6, 15]}, "'layers' is 6"),
        ({"method": "attention_topk", "layer": 6, "keep": 2}, "'layer' is 6"),
        ({"method": "fitprune", "keep": [3, 2], "visual_tokens": 9}, "'keep' has 2 numbers, but the model has 6"),
        ({"method": "none", "before": {"method": "divprune", "keep": 3, "positions": "compact"}}, None),
    ],
)
def test_boundaries_are_checked_against_the_models_depth(llama, settings, message):
    visual = Prompts(MIXED[0]).visual
    if message is None:
        prune(llama, settings, visual)
        return
    with pytest.raises(ValueError, match=message):
        prune(llama, settings, visual)


@pytest.mark.parametrize("name", ["random", "divprune", "attention_topk"])
def test_a_budget_above_the_visual_tokens_is_said_once(llama, name):
    config = {"method": name, "keep": 99} | ({"layer": 1} if name == "attention_topk" else {})
    prompts = Prompts(MIXED[0], MIXED[0])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        with prune(llama, config, prompts.visual) as session:
            llama(**prompts.inputs)
            llama(**prompts.inputs)
    assert [str(warning.message) for warning in said] == [
        f"'keep' of method {name!r} is 99, but there are 20 visual tokens: nothing is pruned there"
    ]
    assert all(trace.tokens_per_layer == [29] * 6 for trace in session.traces)


@pytest.mark.parametrize(("share", "left"), [(0.5, 10), (0.01, 1), (1.0, 20), (0.26, 5)])
def test_a_share_of_the_prompts_own_tokens(llama, share, left):
    prompts = Prompts(MIXED[0])
    with prune(llama, {"method": "divprune", "share": share}, prompts.visual) as session:
        llama(**prompts.inputs)
    assert session.traces[0].visual_per_layer == [left] * 6
    assert session.traces[0].filter_layer is None and session.traces[0].exit_layer is None


@pytest.mark.parametrize("stage", ["inside", "before"])
def test_renumbering_three_row_positions_is_refused(stage):
    compact = {"method": "divprune", "keep": 3, "positions": "compact"}
    config = compact if stage == "inside" else {"method": "fastv", "before": compact}
    with pytest.raises(ValueError, match="M-RoPE.*use 'original'"):
        prune(CASES["qwen2_vl"].model, config)
