"""The prefix cache: rows that run, what is kept how long, which prefixes differ, methods that cannot use it."""

import dataclasses

import pytest
import torch
from conftest import random_llama
from reuse_fixtures import Rows, decisions, embedded

from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.methods import AttentionTopK, RandomPruning


@pytest.fixture
def model():
    return random_llama()


DENSE = {"method": "none"}
FILTER = {"method": "attention_topk", "layer": 3, "keep": 4}


@torch.no_grad()
def test_a_further_question_runs_its_own_tokens(model):
    rows = Rows(model)
    inputs, visual = embedded(0, 5)
    other, _ = embedded(0, 5)
    other["inputs_embeds"][:, -5:] += 1
    with prune(model, DENSE, visual, prefix_cache=True):
        model(**inputs, use_cache=False)
        assert rows.take() == [20] * 6
        assert model(**other).logits.shape[1] == 5
        assert rows.take() == [5] * 6
    with prune(model, FILTER, visual, prefix_cache=True) as session:
        model(**inputs)
        assert rows.take() == [20] * 4 + [12] * 2  # text before the image, 4 kept tokens, the question
        model(**other)
        assert rows.take() == [5] * 4 + [9] * 2
        assert [trace.tokens_per_layer for trace in session.traces] == [[20] * 4 + [12] * 2] * 2


@torch.no_grad()
def test_a_batch_reads_what_its_prompts_share_once(model):
    rows = Rows(model)
    inputs, visual = embedded(0, 4, 4, 4)
    for room in (0, 1 << 30):
        with prune(model, DENSE, visual, prefix_cache=room) as session:
            model(**inputs)
            assert rows.take() == [15 + 3 * 4] * 6
            assert (session.prefix_cache.nbytes > 0) == (room > 0) == (len(session.prefix_cache) > 0)


@dataclasses.dataclass(frozen=True)
class Planned(PruningConfig):
    """Each prompt of a session filters after its own layer."""

    layers: tuple[int, ...] = dataclasses.field(repr=False)

    def of(self, prompt):
        return RandomPruning(layer=self.layers[prompt.number], keep=3)

    def probe(self, layer, prompt):
        return self.of(prompt).probe(layer, prompt)

    def select(self, layer, prompt, measured):
        return self.of(prompt).select(layer, prompt, measured)


@torch.no_grad()
def test_a_question_that_prunes_later_runs_the_rest_of_the_prefix(model):
    """What an earlier question has not run of a prefix, because it pruned before, the next one that needs it runs."""
    rows = Rows(model)
    inputs, visual = embedded(0, 5)
    others = embedded(0, 5, 5, 5, 5)[0]["inputs_embeds"][1:]
    with prune(model, Planned([1, 3, 2, 4, 2]), visual, prefix_cache=True) as session:
        model(**inputs)
        assert rows.take() == [20] * 2 + [11] * 4
        model(inputs_embeds=others[:1])
        assert rows.take() == [5] * 2 + [17] * 2 + [8] * 2
        last = model(inputs_embeds=others).logits[:, -1]
        assert rows.take() == [15] * 3 + [8 + 5 + 8, 8 + 5 + 12 + 8, 8 + 8 + 8]
        assert [trace.filter_layer for trace in session.traces] == [1, 3, 2, 4, 2]
    with prune(model, Planned([2, 4, 2]), visual):
        assert (model(inputs_embeds=others).logits[:, -1] - last).abs().max() < 1e-4


@dataclasses.dataclass(frozen=True)
class Ranked(Planned):
    """The same, ranking by the attention of visual rows, which a question that pruned before did not ask for."""

    def of(self, prompt):
        return AttentionTopK(layer=self.layers[prompt.number], keep=3, rank="visual")


@torch.no_grad()
def test_queries_that_no_question_asked_for_are_run_again(model):
    rows = Rows(model)
    inputs, visual = embedded(0, 5, 5)
    first, second = inputs["inputs_embeds"].split(1)
    with prune(model, Ranked([4, 2, 2]), visual[:1], prefix_cache=True) as session:
        model(inputs_embeds=first)
        rows.take()
        logits = model(inputs_embeds=second).logits[:, -1]
        assert rows.take() == [5, 5, 20, 8, 8, 8]
        model(inputs_embeds=first)
        assert rows.take()[2] == 5
        kept = session.traces[1].kept
    with prune(model, Ranked([2]), visual[:1]) as session:
        assert (model(inputs_embeds=second).logits[:, -1] - logits).abs().max() < 1e-4
        assert session.traces[0].kept == kept


@torch.no_grad()
def test_earlier_turns_are_reused(model):
    """A conversation grows; each prompt runs what is new, and the last token of the one before."""
    rows = Rows(model)
    whole, _ = embedded(0, 15)
    for config in (DENSE, {"method": "vtw", "k": 4}, FILTER):
        logits = {}
        for reuse in (False, True):
            with prune(model.model, config, torch.zeros(1, 1, dtype=torch.bool), prefix_cache=reuse) as session:
                for length in (18, 24, 30, 24):
                    _, visual = embedded(0, length - 15)
                    session._forward.visual_mask = visual
                    output = model(inputs_embeds=whole["inputs_embeds"][:, :length])
                    logits.setdefault(reuse, []).append(output.logits[:, -1])
                    if reuse:
                        first_layer = rows.take()[0]
                        assert first_layer == {18: 18, 24: 7, 30: 7}[length] or (length, first_layer) == (24, 1)
                    else:
                        rows.take()
        assert (torch.stack(logits[True]) - torch.stack(logits[False])).abs().max() < 1e-4


@torch.no_grad()
def test_the_least_recently_used_leave_and_bytes_are_bounded(model):
    _, visual = embedded(0, 4)
    with prune(model, DENSE, visual, prefix_cache=True) as session:
        model(**embedded(0, 4)[0])
        one = session.prefix_cache.nbytes
    rows = Rows(model)
    with prune(model, DENSE, visual, prefix_cache=int(1.9 * one)) as session:
        hits = []
        for image in (0, 1, 0, 1, 2, 1, 0):  # the third leaves room for two; 0 is older than 1 when it comes
            model(**embedded(image, 4)[0])
            hits.append(rows.take()[0] == 1)
            assert session.prefix_cache.nbytes <= int(1.9 * one)
            assert session.prefix_cache.nbytes == sum(node.nbytes for node in session.prefix_cache._blocks.values())
        assert hits == [False, False, True, True, False, True, False]
    assert session.prefix_cache.nbytes == len(session.prefix_cache) == 0
    with prune(model, DENSE, visual, prefix_cache=one // 3) as session:
        for _ in range(2):  # larger than the budget: not kept, but for the text before the image
            model(**embedded(0, 4)[0])
            assert session.prefix_cache.nbytes < one // 3
        assert (session.prefix_cache.reused.prompts, session.prefix_cache.reused.found) == (2, 0)


@torch.no_grad()
def test_a_batch_of_many_images_stays_within_the_bytes(model):
    embeds = torch.cat([embedded(image, 4)[0]["inputs_embeds"] for image in (0, 1, 2, 1)])
    visual = embedded(0, 4, 4, 4, 4)[1]
    with prune(model, DENSE, visual) as session:
        expected = model(inputs_embeds=embeds).logits[:, -1]
    with prune(model, DENSE, visual, prefix_cache=40_000) as session:
        for _ in range(2):
            assert (model(inputs_embeds=embeds).logits[:, -1] - expected).abs().max() < 1e-4
            assert 0 < session.prefix_cache.nbytes <= 40_000


@torch.no_grad()
@pytest.mark.parametrize("change", ["image", "system text", "position", "visual"])
def test_another_beginning_is_never_a_hit(model, change):
    inputs, visual = embedded(0, 4)
    other, other_visual, position = inputs["inputs_embeds"].clone(), visual.clone(), torch.arange(19)[None]
    if change == "image":
        other[0, 9, 7] = torch.nextafter(other[0, 9, 7], torch.tensor(9.0))  # the last bit of one number
    elif change == "system text":
        other[0, 1, 0] *= -1
    elif change == "position":
        position = position + 1
    else:
        other_visual[0, 2] = True
    with prune(model, FILTER, visual, prefix_cache=True) as session:
        model(**inputs, position_ids=torch.arange(19)[None])
        session._forward.visual_mask = other_visual
        model(inputs_embeds=other, position_ids=position)
        assert (session.prefix_cache.reused.prompts, session.prefix_cache.reused.found) == (2, 0)
        session._forward.visual_mask = visual
        model(**inputs, position_ids=torch.arange(19)[None])
        assert session.prefix_cache.reused.found == 1


@torch.no_grad()
def test_other_weights_and_autocast_forget_what_is_known(model):
    inputs, visual = embedded(0, 4)
    with prune(model, DENSE, visual, prefix_cache=True) as session:
        model(**inputs)
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
        changed = model(**inputs).logits[:, -1]
        assert session.prefix_cache.reused.found == 0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(**inputs)
        assert session.prefix_cache.reused.found == 0
    with prune(model, DENSE, visual):
        assert torch.equal(model(**inputs).logits[:, -1], changed)


@torch.no_grad()
def test_images_share_the_text_before_them(model):
    rows = Rows(model)
    with prune(model, DENSE, embedded(0, 4)[1], prefix_cache=True):
        model(**embedded(0, 4)[0])
        rows.take()
        model(**embedded(1, 4)[0])
        assert rows.take() == [12 + 4] * 6


@torch.no_grad()
def test_beams_and_prompts_without_images_go_along(model):
    """Beams repeat a prompt; a text prompt in the batch has nothing to reuse."""
    inputs, visual = embedded(0, 4, 4)
    visual[1] = False
    outputs = []
    for reuse in (False, True):
        with prune(model, FILTER, visual, prefix_cache=reuse) as session:
            for _ in range(2):
                output = model.generate(**inputs, num_beams=3, max_new_tokens=4, do_sample=False)
            outputs.append((output.tolist(), [decisions(trace) for trace in session.traces]))
    assert outputs[0] == outputs[1]
    assert (session.prefix_cache.reused.prompts, session.prefix_cache.reused.found) == (6, 5)


def test_what_cannot_reuse_says_so_and_runs(model):
    inputs, visual = embedded(0, 4)
    expected = [trace.tokens_per_layer for _ in range(2) for trace in traces_of(model, FILTER, visual, inputs)]

    @dataclasses.dataclass(frozen=True)
    class Reluctant(AttentionTopK):
        no_reuse = "reads the question before it reads the image"

    config = Reluctant(layer=3, keep=4)
    with pytest.warns(UserWarning, match="prefix cache is not used: method '.*Reluctant' reads the question"):
        session = prune(model, config, visual, prefix_cache=True)
    assert session.prefix_cache is None
    with session, torch.no_grad():
        model(**inputs), model(**inputs)
    assert [trace.tokens_per_layer for trace in session.traces] == expected
    with prune(model, FILTER, visual, prefix_cache=True) as session:
        with pytest.warns(UserWarning, match="hidden states of all tokens"), torch.no_grad():
            assert model(**inputs, output_hidden_states=True).hidden_states[0].shape[1] == 19
        model.requires_grad_(True)
        with pytest.warns(UserWarning, match="gradients are enabled"):
            model(**inputs).logits.sum().backward()
        assert session.prefix_cache.reused.prompts == 0
    for size in (-1, 1.5, "2"):
        with pytest.raises(ValueError, match="size of a prefix cache is an integer ≥ 0"):
            prune(model, FILTER, visual, prefix_cache=size)


def traces_of(model, config, visual, inputs):
    with torch.no_grad(), prune(model, config, visual) as session:
        model(**inputs)
    return session.traces
