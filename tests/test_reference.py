"""Sanity of the slow reference: against transformers where that applies, against the method's rules elsewhere."""

import copy
import functools

import pytest
import reference
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava.model.pruning import PruningConfig

LAYERS = 6
FULL = {"mode": ["shallow", "middle", "deep"], "shallow_mid_layer": 2, "layer_threshold": 1.0, "tokens_threshold": 0.0}


@functools.cache
def llama(kv_heads: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=10,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).float().eval()


def prompt(layout: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random embeddings [T, D] and the visual mask of a layout such as "ttvvvt"."""
    embeds = torch.randn(len(layout), 32, generator=torch.Generator().manual_seed(seed))
    return embeds, torch.tensor([letter == "v" for letter in layout])


def run(layout: str, settings: dict, kv_heads: int = 2) -> reference.Result:
    return reference.prefill(llama(kv_heads), *prompt(layout), PruningConfig.from_dict(settings))


@torch.no_grad()
def transformers_logits(model, embeds: torch.Tensor) -> torch.Tensor:
    return model(inputs_embeds=embeds[None]).logits[0, -1]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_dense_prefill_and_decode_equal_transformers(kv_heads):
    model = llama(kv_heads)
    embeds, visual = prompt("ttvvvvtt")
    result = reference.prefill(model, embeds, visual, PruningConfig.from_dict({"mode": []}))
    torch.testing.assert_close(result.logits_last, transformers_logits(model, embeds), atol=1e-4, rtol=0)
    for step, token in enumerate([3, 17]):
        logits = reference.decode(model, result, token, 8 + step)
        embeds = torch.cat([embeds, model.model.embed_tokens.weight[token][None].detach()])
        expected = transformers_logits(model, embeds)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("preset", ["paper", "released"])
@pytest.mark.parametrize("layout", ["tttttt", "tttttv"])
def test_prompt_without_visual_tokens_is_dense(layout, preset):
    result, dense = run(layout, FULL | {"preset": preset}), run("tttttt", {"mode": []})
    torch.testing.assert_close(result.logits_last, dense.logits_last)
    assert (result.filter_layer, result.exit_layer, result.kept) == (None, None, [])
    assert result.kv_positions == [list(range(6))] * LAYERS


@pytest.mark.parametrize("cut", [1, 4])
def test_dropped_tokens_are_as_if_the_later_layers_never_had_them(cut):
    """Prefill and decoding equal transformers' first layers on everything, then its others on the text alone."""
    model = llama()
    embeds, visual = prompt("tvvtvtt")
    below, above = copy.deepcopy(model), copy.deepcopy(model)
    below.model.layers, below.model.norm = below.model.layers[:cut], torch.nn.Identity()
    above.model.layers = above.model.layers[cut:]

    def recompute(embeds):
        text = [p for p in range(len(embeds)) if p >= 7 or not visual[p]]
        with torch.no_grad():
            hidden = below.model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[:, text]
            # without a mask, transformers takes gaps in the positions for borders of packed sequences
            mask, positions = torch.ones(1, len(text)), torch.tensor([text])
            output = above(inputs_embeds=hidden, attention_mask=mask, position_ids=positions, use_cache=False)
        return output.logits[0, -1]

    result = reference.prefill(
        model, embeds, visual, PruningConfig.from_dict({"mode": ["deep"], "mid_deep_layer": cut})
    )
    assert (result.surviving, result.exit_layer) == ([0, 3, 5, 6], cut)
    torch.testing.assert_close(result.logits_last, recompute(embeds), atol=1e-4, rtol=0)
    for step, token in enumerate([3, 17]):
        logits = reference.decode(model, result, token, 7 + step)
        embeds = torch.cat([embeds, model.model.embed_tokens.weight[token][None].detach()])
        torch.testing.assert_close(logits, recompute(embeds), atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("preset", ["paper", "released"])
def test_attention_rules_row_by_row(layer, preset):
    visual = [letter == "v" for letter in "vtvvtvt"]
    columns = torch.tensor(visual)
    config = PruningConfig.from_dict(FULL | {"preset": preset, "sink_token": 2})  # the token at position 3
    scores = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(1))
    dense = reference.attention_probabilities(scores, visual, PruningConfig.from_dict({"mode": []}), layer)
    p = reference.attention_probabilities(scores, visual, config, layer)

    assert (p.triu(1) == 0).all()
    text_rows, visual_rows = p[:, ~columns], p[:, columns]
    if layer == 0:
        torch.testing.assert_close(text_rows[..., ~columns], dense[:, ~columns][..., ~columns])
        torch.testing.assert_close(p[:, 4, 3], dense[:, 4, [0, 2, 3]].sum(-1))
        torch.testing.assert_close(p[:, 6, 3], dense[:, 6, [0, 2, 3, 5]].sum(-1))
        torch.testing.assert_close(p[:, 1, 0], dense[:, 1, 0])  # the sink comes later: the last one seen
        assert (p[:, 4:7:2][..., [0, 2, 5]] == 0).all()
    else:
        assert (text_rows[..., columns] == 0).all()
        full_rows = preset == "paper"
        assert torch.allclose(text_rows.sum(-1), torch.ones(2, 3)) == full_rows
    if preset == "released" and layer == 1:
        torch.testing.assert_close(visual_rows, dense[:, columns])
    elif preset == "released":
        assert (visual_rows[..., columns] == 0).all()
        torch.testing.assert_close(visual_rows[..., ~columns], dense[:, columns][..., ~columns])
    else:
        torch.testing.assert_close(visual_rows.sum(-1), torch.ones(2, 4))
        assert (p[:, 0, 0] == 1).all()  # no text before it: itself
        assert (p[:, 2:6][:, [0, 1, 3]][..., columns] == 0).all()


def test_half_zeroes_the_first_half_and_moves_no_mass():
    visual = [letter == "v" for letter in "tvvvvvt"]
    config = PruningConfig.from_dict(FULL | {"preset": "released", "first_layer": "half"})
    scores = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(1))
    dense = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), float("-inf")).softmax(-1)
    row = reference.attention_probabilities(scores, visual, config, 0)[:, -1]
    assert (row[:, [1, 2]] == 0).all()
    torch.testing.assert_close(row[:, [0, 3, 4, 5, 6]], dense[:, -1, [0, 3, 4, 5, 6]])


def test_influence_equals_its_closed_form():
    """`‖c_j‖² = Σ_h A² ‖v‖²` and `O·c_j = Σ_h A (O_h·v_hj)`."""
    model = llama()
    embeds, visual = prompt("ttvvvvt")
    config = PruningConfig.from_dict({"mode": []})
    attention = reference.attend(model, 3, embeds, list(range(7)), visual.tolist(), config)
    cosine, l2 = reference.influence(model, attention, visual.tolist())
    weights = attention.probabilities[:, -1, visual]  # [H, V]
    values = attention.values.repeat_interleave(2, dim=0)[:, visual]  # [H, V, d]
    output = attention.output[-1].reshape(4, -1)  # [H, d]
    squared = (weights**2 * values.pow(2).sum(-1)).sum(0)
    dot = (weights * torch.einsum("hd,hvd->hv", output, values)).sum(0)
    total = output.pow(2).sum()
    torch.testing.assert_close(l2, squared.sqrt())
    torch.testing.assert_close(cosine, (total - dot) / (total * (total - 2 * dot + squared)).sqrt())


@pytest.mark.parametrize("preset,first_probe", [("paper", 2), ("released", 3)])
def test_selection_takes_effect_in_the_next_layer(preset, first_probe):
    layout = "ttvvvvvvtt"
    probe = run(layout, FULL | {"preset": preset, "tokens_threshold": 1e9})
    assert probe.filter_layer == first_probe
    assert (probe.kept, probe.exit_layer) == ([], first_probe + 1)
    assert probe.tokens_per_layer == [10] * (first_probe + 1) + [4] * (LAYERS - first_probe - 1)

    cut = probe.l2[first_probe].sort().values[2:4].mean().item()
    some = run(layout, FULL | {"preset": preset, "mode": ["shallow", "middle"], "tokens_threshold": cut})
    assert some.kept == [2 + j for j, length in enumerate(probe.l2[first_probe]) if length > cut]
    assert len(some.kept) == 3
    assert some.tokens_per_layer == [10] * (first_probe + 1) + [7] * (LAYERS - first_probe - 1)
    assert some.surviving == [0, 1, *some.kept, 8, 9]
    assert some.exit_layer is None


def test_selection_in_the_last_layer_removes_nothing():
    settings = {**FULL, "mode": ["middle"], "shallow_mid_layer": LAYERS - 1, "tokens_threshold": 1e9}
    result = run("tvvvt", settings)
    assert (result.filter_layer, result.kept, result.exit_layer) == (LAYERS - 1, [], None)
    assert result.surviving == list(range(5))
    torch.testing.assert_close(result.logits_last, run("tvvvt", {"mode": []}).logits_last)


@pytest.mark.parametrize("patience,votes,exit_layer", [(1, [3], 4), (2, [3, 4], 5), (3, [3, 4, 5], None)])
def test_exit_takes_effect_after_the_last_vote(patience, votes, exit_layer):
    """Threshold 0: every watched layer votes; the vote of the last layer comes too late."""
    result = run("ttvvvvtt", FULL | {"exit_threshold": 0.0, "exit_patience": patience})
    assert (result.votes, result.exit_layer, result.kept) == (votes, exit_layer, [2, 3, 4, 5])
    before = LAYERS if exit_layer is None else exit_layer
    assert result.tokens_per_layer == [8] * before + [4] * (LAYERS - before)


def test_interrupted_votes_count_only_when_cumulative():
    history = [True, False, True]
    for kind, expected in (("consecutive", False), ("cumulative", True)):
        config = PruningConfig.from_dict(FULL | {"exit_votes": kind, "exit_patience": 2})
        assert reference.exit_reached(history, config) is expected
        assert reference.exit_reached([True, True], config)
        assert not reference.exit_reached([True, False], config)
        assert not reference.exit_reached([True, True, True], config)


def test_needed_cache_drops_the_image_from_shallow_layers_only():
    settings = {**FULL, "mode": ["shallow"], "sink_token": 1}
    text, everything = [0, 4], [0, 1, 2, 3, 4]
    assert run("tvvvt", settings).kv_positions == [[0, 2, 4], text] + [everything] * (LAYERS - 2)
    assert run("tvvvt", settings | {"kv": "all"}).kv_positions == [everything] * LAYERS
    assert run("tvvvt", settings | {"mode": ["middle"]}).kv_positions[0] == everything


def test_sink_beyond_the_visual_tokens_is_refused():
    with pytest.raises(ValueError, match="sink_token 3.*3 visual tokens"):
        run("tvvvt", FULL | {"sink_token": 3})
