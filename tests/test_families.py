"""Every model family through the one engine: dense equality, batches, the plain reading, positions, refusals.

One matrix: a new family is a row of `CASES` in tests/family_models.py.
"""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import reference
import torch
import transformers as hf
from family_case import LAYERS, angles_of, fields
from family_models import CASES, batch_of, internvl
from layer_reading import OwnLayers

from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.families import family_of

DENSE = {"mode": []}
PAPER = {
    "mode": ["shallow", "middle", "deep"],
    "shallow_mid_layer": 2,
    "layer_threshold": 0.975,
    "tokens_threshold": 0.9,
    "exit_threshold": 0.9,
    "exit_patience": 1,
}
CONFIGS = {"paper": PAPER, "released": {**PAPER, "preset": "released"}}
MIDDLE = {**PAPER, "mode": ["middle"], "layer_threshold": 1.0}  # every prompt with visual tokens filters at layer 2
M_ROPE = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"]

HYBRID = ["qwen3_5", "lfm2_vl"]

families = pytest.mark.parametrize("name", CASES)
presets = pytest.mark.parametrize("preset", CONFIGS)


def generate(model, batch, beams=1):
    return model.generate(**batch.inputs, max_new_tokens=4, num_beams=beams, do_sample=False)


@families
def test_nothing_pruned_equals_the_untouched_model(name):
    model, batch = CASES[name].model, batch_of(name)
    untouched, entering = deepcopy(model), []  # a copy: capturing leaves hooks behind
    for layer in family_of(untouched).decoder(untouched).layers:  # transformers records without DeepStack's features
        layer.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    expected = untouched(**batch.inputs, output_hidden_states=True)
    generated = [generate(model, batch, beams) for beams in (1, 2)]
    with CASES[name].prune(DENSE, batch) as session:
        output = model(**batch.inputs, output_hidden_states=True)
        assert [generate(model, batch, beams).tolist() for beams in (1, 2)] == [ids.tolist() for ids in generated]
    live = batch.attention_mask.bool()
    rounding = CASES[name].rounding
    assert (output.logits - expected.logits)[live].abs().max() < rounding * expected.logits.abs().max()
    for ours, theirs in zip(output.hidden_states, [*entering, expected.hidden_states[-1]], strict=True):
        assert (ours - theirs)[live].abs().max() < rounding * theirs.abs().max()
    traces = session.traces[: len(batch.words)]
    assert [trace.tokens_per_layer for trace in traces] == [[n] * LAYERS for n in batch.lengths]
    assert [trace.visual_tokens for trace in traces] == batch.visual.sum(1).tolist()


def test_the_matrix_prunes_in_different_layers_and_some_tokens_only():
    """The random models are worth something: every family prunes, and over all of them in every way."""
    filters, partial, exits = set(), 0, 0
    for name, case in CASES.items():
        with case.prune(PAPER, batch_of(name)) as session:
            case.model(**batch_of(name).inputs)
        assert any(trace.filter_layer is not None for trace in session.traces), name
        filters |= {trace.filter_layer for trace in session.traces if trace.visual_tokens}
        partial += sum(0 < len(trace.kept) < trace.visual_tokens for trace in session.traces)
        exits += sum(trace.exit_layer is not None for trace in session.traces)
    assert len(filters) > 2
    assert partial > len(CASES)
    assert exits > 1


@families
@presets
def test_batch_equals_one_by_one(name, preset):
    model, batch = CASES[name].model, batch_of(name)
    with CASES[name].prune(CONFIGS[preset], batch) as together:
        output = model(**batch.inputs)
        generated = {beams: generate(model, batch, beams) for beams in (1, 2)}
    for row, (word, trace) in enumerate(zip(batch.words, together.traces, strict=False)):
        alone = batch_of(name, word)
        with CASES[name].prune(CONFIGS[preset], alone) as session:
            single = model(**alone.inputs)
            for beams, tokens in generated.items():
                assert generate(model, alone, beams)[0, -4:].tolist() == tokens[row, -4:].tolist()
        assert (trace.filter_layer, trace.kept) == (session.traces[0].filter_layer, session.traces[0].kept)
        assert trace.tokens_per_layer == session.traces[0].tokens_per_layer
        assert trace.kv_tokens_per_layer == session.traces[0].kv_tokens_per_layer
        assert (output.logits[row, -1] - single.logits[0, -1]).abs().max() < 5e-5


def prompt_of(name, word):
    """One prompt as the untouched decoder gets it: batch, what it is given, angles of T + 2 positions."""
    case, batch, seen = CASES[name], batch_of(name, word), {}
    if hasattr(case.model.model, "rope_deltas"):
        case.model.model.rope_deltas = None  # those of an earlier prompt would turn a text-only prompt's next tokens
    hook = case.decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    case.model(**batch.inputs)
    hook.remove()
    if seen["inputs_embeds"] is None:
        seen["inputs_embeds"] = case.decoder.embed_tokens(seen["input_ids"])
    embeds, positions = seen["inputs_embeds"], batch.positions(case)
    further = positions.amax() + 1 + torch.arange(2).expand(*positions.shape[:-1], 2)
    positions = torch.cat([positions, further], -1)
    return batch, seen, [angles_of(case.decoder, layer, embeds, positions) for layer in range(LAYERS)]


def blocks_of(name, batch):
    """Which tokens of a lone prompt read each other both ways, by number; −1: none."""
    if name.startswith("paligemma"):
        return [0] * batch.lengths[0]
    if name != "gemma3":
        return [-1] * batch.lengths[0]
    visual = batch.visual[0].tolist()
    starts = [shown and not before for before, shown in zip([False, *visual], visual, strict=False)]
    return [sum(starts[: place + 1]) if shown else -1 for place, shown in enumerate(visual)]


@pytest.mark.parametrize("name", [name for name in CASES if name not in HYBRID])
@presets
def test_pruned_equals_the_plain_reading(name, preset, monkeypatch):
    """tests/reference.py on the decoder's weights, given the model's own angles; or on the decoder's own layers."""
    case, config = CASES[name], PruningConfig.from_dict(CONFIGS[preset])
    plain = SimpleNamespace(model=case.decoder, lm_head=case.model.lm_head, config=case.decoder.config)
    for word in case.prompts:
        batch, given, ropes = prompt_of(name, word)
        own = None
        if not case.plain:
            image = batch.visual[0].nonzero()[:, 0].tolist()
            own = OwnLayers(case, given, ropes, image, blocks_of(name, batch))

        def rotate(x, places, theta, cos=ropes[0][0][0], sin=ropes[0][1][0]):
            turned = torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1)
            return x * cos[places] + turned * sin[places]

        monkeypatch.setattr(reference, "rotate", rotate)
        expected = reference.prefill(plain, given["inputs_embeds"][0], batch.visual[0], config, own)
        with case.prune(config, batch) as session:
            output = case.model(**batch.inputs)
            steps = [case.model(input_ids=torch.tensor([[t]]), past_key_values=output.past_key_values) for t in (7, 11)]
        trace = session.traces[0]
        assert (trace.filter_layer, trace.kept, trace.exit_layer) == (
            expected.filter_layer,
            expected.kept,
            expected.exit_layer,
        )
        assert trace.tokens_per_layer == expected.tokens_per_layer
        assert trace.kv_tokens_per_layer == [len(places) for places in expected.kv_positions]
        assert (output.logits[0, -1] - expected.logits_last).abs().max() < 1e-4
        for number, (token, step) in enumerate(zip((7, 11), steps, strict=True)):
            place = batch.lengths[0] + number
            if own is None:
                after = reference.decode(plain, expected, token, place)
            else:
                after = own.decode(expected, token, place, batch.lengths[0])
            assert (step.logits[0, -1] - after).abs().max() < 1e-4


@families
def test_kept_tokens_keep_the_positions_of_the_untouched_model(name):
    """The rotary angles of every surviving token are those of its own position, in all rows, in a padded batch."""
    case, batch, seen = CASES[name], batch_of(name), []
    hook = case.decoder.layers[-1].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_embeddings"]), with_kwargs=True
    )
    with case.prune(MIDDLE, batch) as session:
        case.model(**batch.inputs)
    hook.remove()
    untouched = angles_of(case.decoder, LAYERS - 1, torch.zeros(1, 1, 48), batch.positions(case))
    survivors = []
    for row, trace in enumerate(session.traces):
        alive = ~batch.visual[row, -batch.lengths[row] :]
        alive[trace.kept] = True
        survivors.append(batch.ids.shape[1] - batch.lengths[row] + alive.nonzero()[:, 0])
    assert any(0 < len(trace.kept) < trace.visual_tokens for trace in session.traces)
    for angles, all_angles in zip(seen[0], untouched, strict=True):
        expected = torch.cat([part[places] for part, places in zip(all_angles, survivors, strict=True)])
        assert (angles[0] - expected).abs().max() < 1e-6


@pytest.mark.parametrize("name", HYBRID)
def test_decoding_equals_recomputation_with_the_models_own_layers(name):
    """Given the layers' plan, tokens decoded on the cache equal all tokens at once under masks."""
    case = CASES[name]
    batch, given, (rope, *_) = prompt_of(name, case.prompts[-1])
    length, extra = batch.lengths[0], torch.tensor([[7, 11]])
    with case.prune(MIDDLE, batch) as session:
        output = case.model(**batch.inputs)
        steps = [case.model(input_ids=extra[:, i : i + 1], past_key_values=output.past_key_values) for i in (0, 1)]
    trace, hidden = session.traces[0], torch.cat([given["inputs_embeds"], case.decoder.embed_tokens(extra)], 1)
    assert 0 < len(trace.kept) < trace.visual_tokens
    text = torch.cat([~batch.visual[0], torch.ones(2, dtype=torch.bool)])
    chosen = text.clone()
    chosen[trace.kept] = True
    itself = torch.eye(length + 2, dtype=torch.bool)
    features = iter(given.get("deepstack_visual_embeds") or ())
    for visual, layer in zip(trace.visual_per_layer, case.decoder.layers, strict=True):
        alive = torch.ones_like(text) if visual == trace.visual_tokens else chosen
        mask = torch.ones(length + 2, length + 2, dtype=torch.bool).tril() & (alive[None] | itself)
        if not hasattr(layer, "self_attn"):  # it reads one row after the other: those that are left, in a row
            rows = alive.nonzero()[:, 0]
            hidden = hidden.index_copy(1, rows, layer(hidden[:, rows], position_embeddings=rope))
            continue
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=rope)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if (part := next(features, None)) is not None:
            hidden[:, :length][batch.visual] += part
    norm = family_of(case.model).norm(case.decoder)
    expected = case.model.lm_head(norm(hidden))[0, -3:]
    found = torch.stack([output.logits[0, -1], *(step.logits[0, -1] for step in steps)])
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", M_ROPE)
def test_m_rope_positions_in_every_form_that_transformers_hands_down(name):
    """Three rows; a row of text positions before them; none at all, for text before any image was seen."""
    case, batch = CASES[name], batch_of(name)
    model, live = case.model, batch.attention_mask.bool()
    rows = batch.positions(case)
    assert (rows[0] != rows[1]).any() and (rows[1] != rows[2]).any()
    text_row = (batch.attention_mask.cumsum(-1) - 1).clamp_min(0)[None]
    expected = model(**batch.inputs).logits
    with prune(model, DENSE):
        for positions in (rows, torch.cat([text_row, rows])):
            output = model(**batch.inputs, position_ids=positions)
            assert (output.logits - expected)[live].abs().max() < 1e-5
            assert output.past_key_values.next_position.tolist() == (rows.amax((0, 2)) + 1).tolist()
    only = {"input_ids": batch_of(name, "ttttt").ids}
    outputs = []
    for config in (None, DENSE):
        model.model.rope_deltas = None
        session = prune(model, config) if config else torch.no_grad()
        with session:
            first = model(**only)
            model.model.rope_deltas = None
            second = model(input_ids=torch.tensor([[7]]), past_key_values=first.past_key_values)
        outputs.append(torch.cat([first.logits, second.logits], 1))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-5


@families
def test_an_open_boundary_is_filled_in_for_the_depth_of_the_text_model(name):
    """6 of 32 layers is 1 of 6: the session runs, and shows, what the same config with the boundary given does."""
    case, batch = CASES[name], batch_of(name)
    open_config = {key: value for key, value in PAPER.items() if key != "shallow_mid_layer"}
    outputs = []
    for config in (open_config, {**PAPER, "shallow_mid_layer": 1}):
        with case.prune(config, batch) as session:
            outputs.append(case.model(**batch.inputs).logits)
        assert session.config.shallow_mid_layer == 1
    assert torch.equal(*outputs)


@families
def test_boundaries_are_checked_against_the_depth_of_the_text_model(name):
    with pytest.raises(ValueError, match=f"the model has {LAYERS} layers"):
        CASES[name].prune({**PAPER, "shallow_mid_layer": LAYERS}, batch_of(name))


def test_a_decoder_that_the_engine_does_not_know_is_refused():
    with pytest.raises(ValueError, match="does not know the decoder OlmoModel of InternVL"):
        prune(internvl(hf.OlmoConfig(**fields())), PAPER)
