"""The analyses against independent slow computations, in every family and on ragged batches."""

from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from conftest import FULL, MIXED, Prompts, random_llama
from family_case import Batch
from family_models import CASES
from transformers import DynamicCache

from llava.analysis import attention_map, influence_map, logit_lens, remove_sinks, value_norms, value_output
from llava.analysis.arrays import NamedArray
from llava.analysis.sinks import ValueMap, find_sinks
from llava.model.pruning import prune
from llava.model.pruning.families import family_of

POSITIONS = (-1, 1, -2)
HYBRID = ("qwen3_5", "lfm2_vl")


class Slow:
    """A batch read by the untouched eager model: all attention, hidden states and values, prompt by prompt."""

    def __init__(self, name: str):
        self.case = CASES[name]
        words = [word for word in self.case.prompts if set(word) != {"t"}]
        self.batch = Batch(self.case, *words)
        self.mask = self.batch.visual if self.case.layout == "bare" else None
        model = self.case.model
        wanted = {"output_attentions": True, "output_hidden_states": True, "use_cache": True}
        text = self.case.decoder.config
        before, text._attn_implementation = text._attn_implementation, "eager"
        try:
            cache = None if name in HYBRID else DynamicCache()  # which keeps more than a window
            out = model(**self.batch.inputs, **wanted, past_key_values=cache)
        finally:
            text._attn_implementation = before
        self.model, self.hidden, self.logits = model, out.hidden_states, out.logits
        self.attentions = [layer.float() for layer in out.attentions if layer is not None]
        self.values = [layer.values.float() for layer in out.past_key_values.layers if hasattr(layer, "values")]
        self.real = [row.nonzero()[:, 0] for row in self.batch.attention_mask]

    def visual(self, b: int) -> torch.Tensor:
        return self.batch.visual[b].nonzero()[:, 0]

    def values_by_head(self, layer: int, b: int) -> torch.Tensor:
        """[H, T, d], grouped heads written out."""
        values, heads = self.values[layer][b], self.attentions[layer].shape[1]
        return torch.stack([values[h // (heads // len(values))] for h in range(heads)])

    def words(self, vectors: torch.Tensor) -> torch.Tensor:
        """Probabilities of words, soft caps of the logits included."""
        logits = self.model.get_output_embeddings()(vectors)
        cap = getattr(self.case.decoder.config, "final_logit_softcapping", None)
        return (logits if cap is None else cap * torch.tanh(logits / cap)).softmax(-1)


@pytest.fixture(scope="module", params=[name for name in CASES if name not in HYBRID])
def slow(request):
    return Slow(request.param)


def test_attention_rows_are_those_of_the_eager_model(slow):
    for columns in ("visual", "all"):
        maps = attention_map(slow.model, slow.batch.inputs, POSITIONS, columns=columns, visual_mask=slow.mask)
        for b, found in enumerate(maps):
            real = slow.real[b]
            chosen = slow.visual(b) if columns == "visual" else real
            assert found.axes == ("layer", "row", "head", "token")
            assert found.labels["token"] == (chosen - real[0]).tolist()
            rows = real[list(POSITIONS)]
            expected = [layer[b][:, rows][..., chosen].transpose(0, 1) for layer in slow.attentions]
            torch.testing.assert_close(torch.from_numpy(found.values), torch.stack(expected), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", HYBRID)
def test_layers_without_attention_are_left_out_of_maps(name):
    slow = Slow(name)
    test_attention_rows_are_those_of_the_eager_model(slow)
    test_the_lens_is_norm_and_unembedding_of_the_hidden_states(slow)
    attends = [layer for layer, block in enumerate(slow.case.decoder.layers) if hasattr(block, "self_attn")]
    assert attention_map(slow.model, slow.batch.inputs)[0].labels["layer"] == attends
    cosine = influence_map(slow.model, slow.batch.inputs)[0].cosine.values
    assert np.flatnonzero(~np.isnan(cosine).any(1)).tolist() == attends
    with pytest.raises(ValueError, match="layer 0 of .* has no attention heads"):
        value_output(slow.model, slow.batch.inputs)


def test_the_lens_is_norm_and_unembedding_of_the_hidden_states(slow):
    follow = [7, 3]
    norm = family_of(slow.model).norm(slow.case.decoder)
    states = [*(norm(state) for state in slow.hidden[1:-1]), slow.hidden[-1]]  # the last one is normed already
    found = logit_lens(slow.model, slow.batch.inputs, POSITIONS, top=4, follow=follow)
    for b, words in enumerate(found):
        rows = slow.real[b][list(POSITIONS)]
        expected = torch.stack([slow.words(state[b, rows]) for state in states])
        best = expected.topk(4).values
        torch.testing.assert_close(torch.from_numpy(words.probabilities.values), best, atol=2e-5, rtol=1e-4)
        own = expected.gather(-1, torch.from_numpy(words.ids.values))
        torch.testing.assert_close(own, best, atol=2e-5, rtol=1e-4)
        asked = torch.from_numpy(words.followed.values)
        torch.testing.assert_close(asked, expected[..., follow], atol=2e-5, rtol=1e-4)
        final = slow.logits[b, rows].softmax(-1)
        torch.testing.assert_close(asked[-1], final[:, follow], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", [True, False])
def test_value_output_is_each_heads_value_through_its_own_columns(slow, norm):
    head, decoder = slow.model.get_output_embeddings(), slow.case.decoder
    follow = list(range(head.weight.shape[0]))
    for b, words in enumerate(value_output(slow.model, slow.batch.inputs, -1, follow=follow, norm=norm)):
        for layer, block in enumerate(decoder.layers):
            values = slow.values_by_head(layer, b)[:, -1]
            size = values.shape[1]
            for h, value in enumerate(values):
                vector = block.self_attn.o_proj.weight[:, h * size : (h + 1) * size] @ value
                expected = slow.words(decoder.norm(vector) if norm else vector)
                got = torch.from_numpy(words.followed.values[layer, h])
                torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_influence_is_that_of_explicit_contributions(slow):
    for b, found in enumerate(influence_map(slow.model, slow.batch.inputs, visual_mask=slow.mask)):
        columns = slow.visual(b)
        for layer, weights in enumerate(slow.attentions):
            values, row = slow.values_by_head(layer, b), weights[b, :, -1]
            output = torch.einsum("ht,htd->hd", row, values).flatten()
            parts = (row[:, columns, None] * values[:, columns]).transpose(0, 1).flatten(1)
            cosine = torch.cosine_similarity(output.expand_as(parts), output - parts, dim=-1)
            pairs = ((found.cosine, cosine), (found.l2, parts.norm(dim=-1)), (found.attention, row[:, columns].mean(0)))
            for array, expected in pairs:
                torch.testing.assert_close(torch.from_numpy(array.values[layer]), expected, atol=1e-4, rtol=1e-3)


def test_value_norms_and_their_attention(slow):
    for b, found in enumerate(value_norms(slow.model, slow.batch.inputs, -2, visual_mask=slow.mask)):
        real = slow.real[b]
        assert found.visual.tolist() == (slow.visual(b) - real[0]).tolist()
        norms = torch.stack([layer[b][:, real].abs().sum(-1) for layer in slow.values])
        weights = torch.stack([layer[b, :, -2].mean(0)[real] for layer in slow.attentions])
        torch.testing.assert_close(torch.from_numpy(found.norms.values), norms, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.from_numpy(found.attention.values), weights, atol=2e-5, rtol=1e-4)


def test_influence_equals_the_reference(llama):
    prompts = Prompts(*(kinds for kinds in MIXED if "v" in kinds))
    dense = SimpleNamespace(mode=(), shallow_mid_layer=0)
    found = influence_map(llama, prompts.inputs, visual_mask=prompts.visual)
    for b in range(len(prompts.kinds)):
        alone = prompts.single(b)
        x, visual = alone.embeds[0], alone.visual[0].tolist()
        positions = list(range(len(visual)))
        for layer, block in enumerate(llama.model.layers):
            normed = reference.rms_norm(block.input_layernorm, x, llama.config.rms_norm_eps)
            attention = reference.attend(llama, layer, normed, positions, visual, dense)
            cosine, l2 = reference.influence(llama, attention, visual)
            np.testing.assert_allclose(found[b].cosine.values[layer], cosine, atol=1e-4)
            np.testing.assert_allclose(found[b].l2.values[layer], l2, atol=1e-4, rtol=1e-3)
            x = reference.finish_layer(llama, layer, x, attention.output)


FASTV = {"method": "fastv", "k": 2, "r": 0.5, "before": {"method": "divprune", "keep": 9}}


@pytest.mark.parametrize("config", [FULL, FASTV])
def test_a_pruned_map_watches_the_run_and_changes_nothing_in_it(llama, config):
    prompts = Prompts(*(kinds for kinds in MIXED if "v" in kinds))
    with prune(llama, config, prompts.visual) as session:
        llama(**prompts.inputs)
    found = influence_map(llama, prompts.inputs, config, visual_mask=prompts.visual)
    for plain, watched in zip(session.traces, found, strict=True):
        assert (watched.trace.cuts, watched.trace.kept, watched.trace.filter_layer) == (
            plain.cuts,
            plain.kept,
            plain.filter_layer,
        )
        assert watched.trace.tokens_per_layer == plain.tokens_per_layer
        there = (~np.isnan(watched.l2.values)).sum(1)
        assert there.tolist() == plain.visual_per_layer
        assert plain.probes or config is FASTV
        for probe in plain.probes:
            assert np.nanmin(watched.cosine.values[probe.layer]) == pytest.approx(probe.min_cosine, abs=1e-5)
            assert np.nanmax(watched.l2.values[probe.layer]) == pytest.approx(probe.max_l2, rel=1e-4)


def test_sinks_are_attended_and_short():
    attention = np.full((1, 12), 0.02)
    norms = np.full((1, 2, 12), 5.0)
    attention[0, [4, 5, 7]] = (0.3, 0.2, 0.25)  # 5 is attended, but long
    norms[0, :, [4, 7, 8]] = 1.0  # 8 is short, but hardly attended
    names = ("layer", "kv_head", "token")
    found = ValueMap(NamedArray(norms, names), NamedArray(attention, names[::2]), np.arange(2, 12))
    assert find_sinks(found, 0, attention=2) == [4, 7]
    assert find_sinks(found, 0, attention=9) == []


def test_removed_sinks_leave_their_attention_to_the_others(llama):
    prompts = Prompts("tt" + "v" * 9 + "ttt")
    sinks = [4, 9]
    shares = remove_sinks(llama, prompts.inputs, sinks, visual_mask=prompts.visual)
    left = [place for place in range(14) if place not in sinks]
    llama.set_attn_implementation("eager")
    positions = torch.arange(14)[None]
    for run, at in enumerate((list(range(14)), left)):
        embeds = prompts.embeds[:, at]
        out = llama(inputs_embeds=embeds, position_ids=positions[:, at], output_attentions=True)
        for layer, weights in enumerate(out.attentions):
            mean = dict(zip(at, weights[0, :, -1].mean(0).tolist(), strict=True))
            others = [place for place in range(2, 11) if place not in sinks]
            groups = ([0], [1, 11, 12, 13], sinks, others)
            expected = [sum(mean.get(place, 0) for place in group) for group in groups]
            np.testing.assert_allclose(shares.values[run, layer], expected, atol=1e-5)
    llama.set_attn_implementation("sdpa")
    np.testing.assert_allclose(shares.sum("where").values, 1, atol=1e-5)


def hooks_of(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_model_is_left_as_it_was_also_after_an_error():
    model, prompts = random_llama(), Prompts("tvvvt", "tttvvvvt")
    before = model(**prompts.inputs).logits
    mask = {"visual_mask": prompts.visual}
    logit_lens(model, prompts.inputs)
    value_output(model, prompts.inputs)
    attention_map(model, prompts.inputs, **mask)
    with pytest.raises(ValueError, match="position 6 is outside prompt 0, which has 5 tokens"):
        logit_lens(model, prompts.inputs, [6])
    with pytest.raises(ValueError, match="position 6 is not among the 5 tokens of prompt 0"):
        attention_map(model, prompts.inputs, [6], **mask)
    assert hooks_of(model) == 0
    assert "forward" not in vars(model.model)
    assert torch.equal(model(**prompts.inputs).logits, before)


def test_what_cannot_be_analysed_is_said_in_one_line(llama):
    text, seen = Prompts("tttt"), Prompts("tvvt")
    with pytest.raises(ValueError, match="prompt 0 of the batch has no visual tokens"):
        attention_map(llama, text.inputs, visual_mask=text.visual)
    with pytest.raises(ValueError, match="attention of 65 tokens was asked for: give 1 to 64"):
        attention_map(llama, seen.inputs, range(65), visual_mask=seen.visual)
    with pytest.raises(ValueError, match="columns must be 'visual' or 'all'"):
        attention_map(llama, seen.inputs, columns="text", visual_mask=seen.visual)
    with pytest.raises(ValueError, match="LlamaModel has no unembedding"):
        logit_lens(llama.model, seen.inputs)
    with pytest.raises(ValueError, match="token id 97 was to be followed, but this model has 0 to 96"):
        logit_lens(llama, seen.inputs, follow=[97])
    with pytest.raises(ValueError, match="top is 0: give 1 to 97"):
        value_output(llama, seen.inputs, top=0)
    mask = {"visual_mask": seen.visual}
    with pytest.raises(ValueError, match="position 3 holds no visual token"):
        remove_sinks(llama, seen.inputs, [3], **mask)
    with pytest.raises(ValueError, match="all 2 visual tokens were given as sinks"):
        remove_sinks(llama, seen.inputs, [1, 2], **mask)
    two = Prompts("tvvt", "tvvt")
    with pytest.raises(ValueError, match="one prompt, but the batch has 2"):
        remove_sinks(llama, two.inputs, [1], visual_mask=two.visual)


def test_named_arrays_know_their_axes():
    array = NamedArray(np.arange(24).reshape(2, 3, 4), ("layer", "head", "token"), {"token": [10, 11, 12, 13]})
    assert array.mean("head").at(layer=1).values.tolist() == array.values[1].mean(0).tolist()
    picked = array.at(token=[3, 0], layer=0)
    assert (picked.axes, picked.labels["token"]) == (("head", "token"), [13, 10])
    assert picked.values.tolist() == array.values[0][:, [3, 0]].tolist()
    with pytest.raises(ValueError, match="no axis 'row'"):
        array.sum("row")
    with pytest.raises(ValueError, match="do not name the 3 dimensions"):
        NamedArray(array.values, ("layer", "head"))
    with pytest.raises(ValueError, match="axis 'head' has 3 places and 2 labels"):
        NamedArray(array.values, array.axes, {"head": "ab"})
