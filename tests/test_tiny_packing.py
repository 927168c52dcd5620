"""Packed conversations: they compute what transformers computes on each alone, also where a plan imitates pruning."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_tiny_questions import solve
from training_fixtures import SMALL
from transformers import CLIPVisionModel, LlamaForCausalLM

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.model.pruning import PruningConfig, prune
from llava.tiny.pieces import PieceTokenizer
from llava.tiny.questions import SHORT_ANSWER, YES_NO_KINDS, YES_OR_NO
from llava.tiny.scenes import render
from llava.tiny.worlds import SIGN_WORDS, TRAINING, UNSEEN_PAIRS, is_evaluation_sign
from llava.train.tiny.conversations import STYLES, Turn, captions, converse, draw_questions
from llava.train.tiny.decoder import DENSE, Plan
from llava.train.tiny.modules import TinyLlava, export_states
from llava.train.tiny.packing import EOS, IGNORED, conversation_ids, pack, prefix_ids

LAYERS = SMALL.layers


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = TinyLlava(SMALL, prefix_ids()).eval().requires_grad_(False)
    for p in model.parameters():  # norms and biases are 1 and 0 at the start; peaked attention, so that tokens matter
        p.add_(torch.randn_like(p) * 0.1)
    for layer in model.layers:
        layer.qkv.weight.mul_(2.5)
    return model


@pytest.fixture(scope="module")
def llama(model):
    llama = LlamaForCausalLM(SMALL.language_config()).eval().requires_grad_(False)
    llama.load_state_dict(export_states(model)[2])
    return llama


@pytest.fixture(scope="module")
def batch():
    drawn = [render(np.random.default_rng(seed), 1.0, 1.0, TRAINING) for seed in range(2)]
    style = replace(STYLES["turns"], turns=3)
    conversations = [converse(scene, np.random.default_rng(7), style, 6, TRAINING) for _, scene in drawn]
    return torch.from_numpy(np.stack([pixels for pixels, _ in drawn])), conversations, pack(conversations)


def hidden(model, batch, plan=DENSE, chosen=None):
    pictures, _, p = batch
    return model(model.tower(pictures), p.ids, p.ends, p.turns, plan, chosen)


def alone(model, pictures, b, ids):
    """Embeddings [1, L, D] of prefix, image b and a conversation, and which of them are visual, bool [1, L]."""
    image = model.projector(model.tower(pictures[b : b + 1]))
    parts = [model.embed(model.prefix)[None], image, model.embed(torch.tensor(ids))[None]]
    visual = torch.zeros(1, sum(part.shape[1] for part in parts), dtype=torch.bool)
    visual[:, len(model.prefix) : len(model.prefix) + image.shape[1]] = True
    return torch.cat(parts, 1), visual


def test_the_tower_is_transformers_clip(model, batch):
    vision = export_states(model)[0]
    clip = CLIPVisionModel(SMALL.vision_config()).eval()
    prefixed = any(name.startswith("vision_model.") for name in clip.state_dict())
    clip.load_state_dict({("vision_model." if prefixed else "") + name: t for name, t in vision.items()}, strict=True)
    pixels = (batch[0].permute(0, 3, 1, 2).float() / 255 - SMALL.pixel_mean) / SMALL.pixel_std
    expected = clip(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(model.tower(batch[0]), expected, rtol=0, atol=1e-4)


def test_packed_conversations_equal_transformers_on_each_alone(model, llama, batch):
    pictures, conversations, _ = batch
    logits = model.head(hidden(model, batch))
    for b, asked in enumerate(conversations):
        for k, turns in enumerate(asked):
            ids = conversation_ids(turns)[0][:-1]
            expected = llama(inputs_embeds=alone(model, pictures, b, ids)[0]).logits[0, -len(ids) :]
            assert expected.std() > 0.1
            torch.testing.assert_close(logits[b, k, : len(ids)], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("plan", "config"),
    [
        (Plan(frozenset({1}), True, frozenset({0, 1})), {"mode": ["shallow"], "shallow_mid_layer": 2}),
        (Plan(frozenset({4, 5})), {"mode": ["deep"], "mid_deep_layer": 4}),
        (
            Plan(frozenset({1, 4, 5}), True, frozenset({0, 1})),
            {"mode": ["shallow", "deep"], "shallow_mid_layer": 2, "mid_deep_layer": 4},
        ),
        (Plan(frozenset({4, 5}), filter_layer=3, kept=0), {"method": "random", "layer": 3, "keep": 0}),
    ],
)
def test_a_plan_imitates_what_the_engine_does(model, llama, batch, plan, config):
    pictures, conversations, _ = batch
    logits = model.head(hidden(model, batch, plan))
    dense = model.head(hidden(model, batch))
    ids = conversation_ids(conversations[1][0])[0][:-1]
    embeds, visual = alone(model, pictures, 1, ids)
    with prune(llama, PruningConfig.from_dict(config), visual_mask=visual):
        expected = llama(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2])).logits[0, -len(ids) :]
    torch.testing.assert_close(logits[1, 0, : len(ids)], expected, rtol=0, atol=1e-4)
    assert (dense[1, 0, : len(ids)] - expected).abs().max() > 1e-3


def test_the_kept_tokens_are_those_of_most_influence_on_the_last_prompt_token(model, llama, batch):
    """All tokens of later layers ablated one by one: exactly the kept ones matter, for each turn its own."""
    at, kept = 2, 3
    pictures, _, p = batch
    features = model.tower(pictures)
    plan = Plan(filter_layer=at, kept=kept, isolated=frozenset(range(at + 1, LAYERS)))
    seen = []

    def record(layer, args, output):
        seen.append(output[1])

    handle = model.layers[at].register_forward_hook(record)
    model(features, p.ids, p.ends, p.turns, plan)
    handle.remove()
    (chosen,) = seen
    assert chosen.shape == (*p.ids.shape, 144) and (chosen.sum(-1) == kept).all()
    ids = p.ids[0, 0].tolist()
    last = p.ends[0, 0, -1].item()
    embeds, visual = alone(model, pictures, 0, ids[: last + 1])
    config = {"mode": ["middle"], "shallow_mid_layer": at, "layer_threshold": 1.0, "tokens_threshold": 0.0}
    with prune(llama, PruningConfig.from_dict(config), visual_mask=visual) as session:
        llama(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2]))
    trace = session.traces[-1].to_dict()
    influence = next(value for key, value in trace.items() if "influence" in key)
    strongest = np.argsort(influence)[-kept:]
    assert set(np.flatnonzero(chosen[0, 0, last].numpy())) == set(strongest.tolist())
    first = p.ends[0, 0, 0]
    assert not torch.equal(chosen[0, 0, first], chosen[0, 0, last])


def test_one_question_never_reads_another(model, batch):
    pictures, conversations, _ = batch
    changed = [[conversations[0][0], [Turn("Is there a red cross?", "No")] * 3], conversations[1]]
    before, after = hidden(model, batch), hidden(model, (pictures, changed, pack(changed)))
    width = min(before.shape[2], after.shape[2])
    torch.testing.assert_close(before[0, 0, :width], after[0, 0, :width], rtol=0, atol=1e-5)
    torch.testing.assert_close(before[1, :, :width], after[1, :, :width], rtol=0, atol=1e-5)


def test_chosen_tokens_stay_at_their_positions(model, batch):
    everything = torch.arange(144).expand(2, -1)
    torch.testing.assert_close(hidden(model, batch, chosen=everything), hidden(model, batch))
    half = hidden(model, batch, chosen=everything[:, ::2])
    assert (half - hidden(model, batch)).abs().max() > 1e-3
    pictures, conversations, p = batch
    embeds, _ = alone(model, pictures, 0, p.ids[0, 0].tolist())
    n0 = len(model.prefix)
    places = [*range(n0), *range(n0, n0 + 144, 2), *range(n0 + 144, embeds.shape[1])]
    reference = LlamaForCausalLM(SMALL.language_config()).eval()
    reference.load_state_dict(export_states(model)[2])
    out = reference.model(inputs_embeds=embeds[:, places], position_ids=torch.tensor([places])).last_hidden_state
    torch.testing.assert_close(half[0, 0], out[0, -p.ids.shape[-1] :].detach(), rtol=0, atol=1e-4)


def test_ids_are_those_of_llavas_prompt(tmp_path):
    from transformers import AutoTokenizer, LlamaConfig

    PieceTokenizer(512).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, config=LlamaConfig())
    rng = np.random.default_rng(5)
    for seed in range(12):
        _, scene = render(np.random.default_rng(seed), 1.0, 1.0, TRAINING)
        for name in STYLES:
            for turns in converse(scene, rng, STYLES[name], 4, TRAINING):
                conversation = conv_templates["vicuna_v1"].copy()
                for n, turn in enumerate(turns):
                    conversation.append_message(conversation.roles[0], turn.text if n else f"<image>\n{turn.text}")
                    conversation.append_message(conversation.roles[1], turn.answer)
                whole = tokenizer_image_token(conversation.get_prompt(), tokenizer)
                assert whole == [*prefix_ids(), IMAGE_TOKEN_INDEX, *conversation_ids(turns)[0]]


def test_targets_are_the_answers_and_nothing_else(batch):
    _, conversations, p = batch
    for b, asked in enumerate(conversations):
        for k, turns in enumerate(asked):
            ids, answers = conversation_ids(turns)
            wanted = [token for start, stop in answers for token in ids[start:stop]]
            found = p.targets[b, k]
            assert found[found != IGNORED].tolist() == wanted and wanted.count(EOS) == len(turns)
            for n, (start, stop) in enumerate(answers):
                assert p.ends[b, k, n] == start - 1
                assert (p.turns[b, k, start - 1 : stop] == n).all()


def test_a_glance_reads_nothing_where_it_chooses_and_chooses_as_a_look_does(model, batch):
    pictures, _, p = batch
    features = model.tower(pictures)
    chosen = []
    handle = model.layers[2].register_forward_hook(lambda layer, args, output: chosen.append(output[1]))
    hidden = [
        model(features, p.ids, p.ends, p.turns, plan)
        for plan in (
            Plan(filter_layer=2, kept=10**6, glance=True),
            Plan(blind=frozenset({2})),
            Plan(filter_layer=2, kept=3, glance=True),
            Plan(filter_layer=2, kept=3),
        )
    ]
    handle.remove()
    torch.testing.assert_close(hidden[0], hidden[1], rtol=0, atol=1e-5)
    assert chosen[0] is None and torch.equal(chosen[2], chosen[3]) and (chosen[2].sum(-1) == 3).all()
    assert (hidden[2] - hidden[3]).abs().max() > 1e-3 and (hidden[2] - hidden[0]).abs().max() > 1e-3


def test_training_never_shows_or_names_what_is_held_out():
    rng = np.random.default_rng(0)
    said, yes = [], {kind: [] for kind in YES_NO_KINDS}
    for seed in range(150):
        _, scene = render(np.random.default_rng(seed), 1.0, 0.5, TRAINING)
        assert not {(o.color, o.shape) for o in scene.objects} & set(UNSEEN_PAIRS)
        assert not is_evaluation_sign(scene.sign)
        hard = STYLES["hard"]
        asked = draw_questions(scene, rng, 16, TRAINING, hard.kinds, hard.more) if seed % 2 else ()
        for question in [*draw_questions(scene, rng, 16, TRAINING), *asked]:
            assert not any(f"{color} {shape}" in question.text for color, shape in UNSEEN_PAIRS)
            assert not any(f"Is the {shape} {color}?" in question.text for color, shape in UNSEEN_PAIRS)
            assert question.answer == solve(question.text, scene)
            if question.kind == "mme_text":
                said.append(question.text.split('"')[1])
            if question.kind in yes:
                yes[question.kind].append(question.answer == "Yes")
    assert len(said) > 100 and not any(is_evaluation_sign(text) for text in said)
    for kind, answers in yes.items():
        assert len(answers) > 30 and 0.35 < np.mean(answers) < 0.65, kind


def test_wordings_are_llavas():
    _, scene = render(np.random.default_rng(2), 1.0, 1.0, TRAINING)
    turns = [
        t
        for seed in range(20)
        for t in sum(converse(scene, np.random.default_rng(seed), STYLES["short"], 8, TRAINING), [])
    ]
    short = [turn for turn in turns if turn.text.endswith(SHORT_ANSWER)]
    assert len(turns) == 160 and 0.7 < len(short) / len(turns) < 0.97
    assert not any(YES_OR_NO in turn.text for turn in short)
    assert len(sum(converse(scene, np.random.default_rng(0), STYLES["turns"], 8, TRAINING), [])) == 8
    described = captions(scene, np.random.default_rng(0), 4)
    assert len({turn.text for turn in described}) == 4
    assert all(f"a sign {scene.sign}" in t.answer and f"a card {scene.digit}" in t.answer for t in described)
    assert not any(word in turn.answer for word in SIGN_WORDS for turn in described)
