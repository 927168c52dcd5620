"""The engine equals the slow reference (tests/reference.py): every key, both presets."""

import pytest
import reference
import torch
from conftest import Prompts, random_llama
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st

from llava.model.pruning import PruningConfig, prune

TOLERANCE = 1e-4
MODELS = {}

pytestmark = pytest.mark.filterwarnings("ignore:'mid_deep_layer'")  # checked to have no effect beside 'middle'


def model_of(layers, heads, kv_heads, seed):
    key = (layers, heads, kv_heads, seed)
    if key not in MODELS:
        MODELS[key] = random_llama(layers, heads=heads, kv_heads=kv_heads, seed=seed)
    return MODELS[key]


models = st.builds(model_of, st.sampled_from([3, 5, 7]), st.just(4), st.sampled_from([1, 2, 4]), st.integers(0, 3))
text = st.integers(1, 5).map("t".__mul__)
image = st.integers(1, 12).map("v".__mul__)
kinds = st.one_of(
    st.tuples(text, image, text),
    st.tuples(text, image, image, text),
    st.tuples(text, image, text, image, text),
    st.tuples(image, text),
    st.tuples(text, image),
    st.tuples(text),
).map("".join)


@st.composite
def configs(draw, layers):
    mode = draw(st.lists(st.sampled_from(["shallow", "middle", "deep"]), unique=True))
    if draw(st.booleans()):
        mode = ["shallow", "middle", "deep"]
    boundary = draw(st.integers(1, layers - 1))
    chosen = {
        "mode": mode,
        "preset": draw(st.sampled_from(["paper", "released"])),
        "shallow_mid_layer": boundary,
        "layer_threshold": draw(st.sampled_from([0.0, 0.8, 0.9, 0.95, 1.0])),
        "tokens_threshold": draw(st.sampled_from([0.0, 0.3, 0.5, 1.0, 2.0, 50.0])),
        "mid_deep_layer": draw(st.integers(boundary, layers - 1)),
        "exit_threshold": draw(st.sampled_from([0.0, 0.7, 0.9, 0.95, 1.0])),
        "exit_patience": draw(st.integers(1, 3)),
    }
    rows = {
        "first_layer": ["merge", "half"],
        "first_layer_visual": ["remove", "zero", "dense"],
        "shallow_text": ["remove", "zero"],
        "shallow_visual": ["remove", "zero", "dense"],
        "probe_offset": [0, 1],
        "exit_votes": ["consecutive", "cumulative"],
        "tokens_scale": ["absolute", "relative"],
        "kv": ["needed", "all"],
    }
    for key, values in rows.items():
        if draw(st.booleans()):
            chosen[key] = draw(st.sampled_from(values))
    return chosen


@st.composite
def cases(draw):
    model = draw(models)
    batch = draw(st.lists(kinds, min_size=1, max_size=3))
    config = draw(configs(model.config.num_hidden_layers))
    fewest = min((kind[:-1].count("v") for kind in batch if "v" in kind[:-1]), default=1)
    config["sink_token"] = draw(st.integers(0, fewest - 1))
    return model, batch, config, draw(st.integers(0, 9))


def far_from_thresholds(config, result):
    """Whether no decision of the reference hangs on the last bits of a float."""
    for layer, cosine in result.cosine.items():
        searching = result.filter_layer is None or layer <= result.filter_layer
        threshold = config.layer_threshold if searching else config.exit_threshold
        if threshold < 1 and (cosine - threshold).abs().min() < 1e-4:
            return False
        if threshold == 1 and (1 - cosine).max() < 1e-4:
            return False
        if layer == result.filter_layer and (result.l2[layer] - config.tokens_threshold).abs().min() < 1e-4:
            return False
    return True


@settings(max_examples=200, deadline=None)
@given(cases())
def test_the_engine_agrees_with_the_plain_reading(case):
    model, batch, chosen, seed = case
    config, prompts = PruningConfig.from_dict(chosen), Prompts(*batch, seed=seed)
    expected = []
    for row in range(len(batch)):
        alone = prompts.single(row)
        expected.append(reference.prefill(model, alone.embeds[0], alone.visual[0], config))
    assume(all(far_from_thresholds(config, result) for result in expected))

    with prune(model, config, prompts.visual) as session:
        output = model(**prompts.inputs, use_cache=True)
        steps = [
            model(input_ids=torch.full((len(batch), 1), token), past_key_values=output.past_key_values).logits[:, -1]
            for token in (7, 11)
        ]
    for row, (trace, result) in enumerate(zip(session.traces, expected, strict=True)):
        note(f"{batch[row]}: {trace.summary()}")
        assert trace.tokens_per_layer == result.tokens_per_layer
        assert trace.filter_layer == result.filter_layer
        assert trace.kept == result.kept
        assert trace.exit_layer == result.exit_layer
        assert trace.kv_tokens_per_layer == [len(places) for places in result.kv_positions]
        assert [probe.layer for probe in trace.probes] == list(result.cosine)
        for probe in trace.probes:
            assert abs(probe.min_cosine - float(result.cosine[probe.layer].min())) < TOLERANCE
            assert abs(probe.max_l2 - float(result.l2[probe.layer].max())) < TOLERANCE
        survivors = output.logits[row, -len(result.surviving) :]
        expected_logits = reference.linear(model.lm_head, result.last_hidden)
        assert (survivors - expected_logits).abs().max() < TOLERANCE
        for number, (token, logits) in enumerate(zip((7, 11), steps, strict=True)):
            after = reference.decode(model, result, token, len(batch[row]) + number)
            assert (logits[row] - after).abs().max() < TOLERANCE
