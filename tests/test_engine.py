"""Properties of the pruned prefill and of decoding on its cache."""

import threading

import numpy as np
import pytest
import torch
from conftest import FULL, MIXED, Prompts, random_llama
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaForCausalLM, StaticCache, StoppingCriteria, TextStreamer

from llava.model.pruning import PruningConfig, RaggedCache, prune

DENSE = {"mode": []}
CONFIGS = {
    "dense": DENSE,
    "paper": FULL,
    "released": {**FULL, "preset": "released"},
    "half": {**FULL, "preset": "released", "first_layer": "half"},
    "shallow": {"mode": ["shallow"], "shallow_mid_layer": 3},
    "late sink": {"mode": ["shallow"], "shallow_mid_layer": 3, "sink_token": 11},
    "middle": {**FULL, "mode": ["middle"]},
    "deep": {"mode": ["deep"], "mid_deep_layer": 3},
}


@pytest.fixture(scope="module")
def batch():
    return Prompts(*MIXED)


def test_configs_prune_in_different_layers(llama, batch):
    """The fixtures are worth something: samples of one batch prune at different layers, and not all alike."""
    with prune(llama, FULL, batch.visual) as session:
        llama(**batch.inputs)
    filters = {trace.filter_layer for trace in session.traces if trace.visual_tokens}
    assert len(filters) > 1
    assert any(0 < len(trace.kept) < trace.visual_tokens for trace in session.traces)
    assert any(trace.exit_layer for trace in session.traces)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_pruned_equals_the_untouched_model(dtype):
    model, prompts = random_llama().to(dtype), Prompts("t" * 5 + "v" * 9 + "t" * 4)
    inputs = {"inputs_embeds": prompts.embeds.to(dtype)}
    expected = model(**inputs)
    with prune(model, DENSE, prompts.visual) as session:
        output = model(**inputs)
    assert torch.equal(output.logits, expected.logits)
    assert session.traces[0].tokens_per_layer == [18] * 6


def test_nothing_pruned_equals_the_untouched_model_in_a_padded_batch(llama, batch):
    positions = {"position_ids": batch.position_ids}
    expected = llama(**batch.inputs, **positions, output_hidden_states=True)
    with prune(llama, DENSE, batch.visual):
        output = llama(**batch.inputs, **positions, output_hidden_states=True)
        without_positions = llama(**batch.inputs)
    live = batch.attention_mask.bool()
    assert (output.logits - expected.logits)[live].abs().max() < 1e-5
    assert (without_positions.logits - expected.logits)[live].abs().max() < 1e-5
    assert len(output.hidden_states) == len(expected.hidden_states)
    for ours, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert (ours - theirs)[live].abs().max() < 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
def test_batch_equals_one_by_one(llama, batch, name):
    with prune(llama, CONFIGS[name], batch.visual) as together:
        output = llama(**batch.inputs)
        step = llama(input_ids=torch.arange(4)[:, None] + 5, past_key_values=output.past_key_values)
    for row, trace in enumerate(together.traces):
        alone = batch.single(row)
        with prune(llama, CONFIGS[name], alone.visual) as session:
            single = llama(**alone.inputs)
            after = llama(input_ids=torch.tensor([[row + 5]]), past_key_values=single.past_key_values)
        assert trace.tokens_per_layer == session.traces[0].tokens_per_layer
        assert trace.kv_tokens_per_layer == session.traces[0].kv_tokens_per_layer
        assert (trace.filter_layer, trace.kept) == (session.traces[0].filter_layer, session.traces[0].kept)
        assert (output.logits[row, -1] - single.logits[0, -1]).abs().max() < 2e-5
        assert (step.logits[row, -1] - after.logits[0, -1]).abs().max() < 2e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_traces_keep_their_promises(llama, batch, name):
    with prune(llama, CONFIGS[name], batch.visual) as session:
        llama(**batch.inputs)
    for kind, trace in zip(batch.kinds, session.traces, strict=True):
        assert trace.tokens_per_layer == sorted(trace.tokens_per_layer, reverse=True)
        assert set(trace.kept) <= {place for place, letter in enumerate(kind) if letter == "v"}
        assert trace.prompt_tokens == len(kind)
        assert trace.visual_tokens == kind.count("v")
        assert all(0 <= kv <= n for kv, n in zip(trace.kv_tokens_per_layer, trace.tokens_per_layer, strict=True))
        assert trace.flops() <= trace.dense_flops()
        assert trace.flops("all") <= trace.dense_flops("all")
        if "v" not in kind:
            assert (trace.filter_layer, trace.exit_layer, trace.kept) == (None, None, [])
        if trace.exit_layer is not None:
            assert trace.visual_per_layer[trace.exit_layer] == 0 < trace.visual_per_layer[trace.exit_layer - 1]


@pytest.mark.parametrize("name", ["middle", "deep"])
def test_decoding_equals_recomputation_over_the_surviving_tokens(llama, name):
    """Given the layers' plan, token by token on the cache equals all tokens at once.

    A second prefill with the new tokens appended would choose anew, so the plan is fixed: each layer's mask hides the
    visual tokens that the trace says it did not run with.
    """
    prompts, extra = Prompts("ttt" + "v" * 20 + "tttt"), torch.tensor([[5, 6, 7]])
    with prune(llama, CONFIGS[name], prompts.visual) as session:
        output = llama(**prompts.inputs)
        steps = [llama(input_ids=extra[:, :1], past_key_values=output.past_key_values)]
        steps += [llama(input_ids=extra[:, i : i + 1], past_key_values=output.past_key_values) for i in (1, 2)]
    trace, length = session.traces[0], prompts.embeds.shape[1]
    embeds = torch.cat([prompts.embeds, llama.model.embed_tokens(extra)], 1)
    kept = torch.tensor([letter == "t" for letter in prompts.kinds[0]] + [True] * 3)
    chosen = kept.clone()
    chosen[trace.kept] = True
    hidden, rope = embeds, llama.model.rotary_emb(embeds, torch.arange(length + 3)[None])
    for layer, (visual, module) in enumerate(zip(trace.visual_per_layer, llama.model.layers, strict=True)):
        alive = torch.ones(length + 3, dtype=torch.bool)
        if visual < 20:
            alive = chosen if visual else kept
        mask = torch.ones(length + 3, length + 3, dtype=torch.bool).tril() & (
            alive[None] | torch.eye(length + 3).bool()
        )
        hidden = module(hidden, attention_mask=mask[None, None], position_embeddings=rope)
        assert trace.kv_tokens_per_layer[layer] == int(alive[:length].sum())
    expected = llama.lm_head(llama.model.norm(hidden))[0, -3:]
    assert (torch.stack([step.logits[0, -1] for step in steps]) - expected).abs().max() < 1e-4


def test_several_new_tokens_at_once_equal_one_at_a_time(llama, batch):
    new = torch.randint(3, 90, (4, 3), generator=torch.Generator().manual_seed(0))
    with prune(llama, FULL, batch.visual):
        cache = llama(**batch.inputs).past_key_values
        together = llama(input_ids=new, past_key_values=cache).logits
        cache = llama(**batch.inputs).past_key_values
        apart = [llama(input_ids=new[:, i : i + 1], past_key_values=cache).logits[:, 0] for i in range(3)]
        cache.crop(-2)
        again = llama(input_ids=new[:, 1:], past_key_values=cache).logits
    assert (together - torch.stack(apart, 1)).abs().max() < 1e-4
    assert (again - together[:, 1:]).abs().max() < 1e-4


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True}, {"num_beams": 2, "do_sample": True}])
def test_generate_without_pruning_equals_the_untouched_model(llama, batch, settings):
    def run():
        torch.manual_seed(3)
        return llama.generate(**batch.inputs, max_new_tokens=6, **settings)

    expected = run()
    with prune(llama, DENSE, batch.visual):
        assert torch.equal(run(), expected)


@pytest.mark.parametrize("name", ["paper", "released", "deep"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_in_a_batch_equals_one_by_one(llama, batch, name, beams):
    with prune(llama, CONFIGS[name], batch.visual):
        together = llama.generate(**batch.inputs, max_new_tokens=5, num_beams=beams)
    for row in range(len(batch.kinds)):
        alone = batch.single(row)
        with prune(llama, CONFIGS[name], alone.visual):
            single = llama.generate(**alone.inputs, max_new_tokens=5, num_beams=beams)
        assert torch.equal(together[row], single[0])


def test_greedy_generate_equals_a_hand_written_loop(llama):
    prompts = Prompts(MIXED[0])
    with prune(llama, FULL, prompts.visual):
        generated = llama.generate(**prompts.inputs, max_new_tokens=6)[0]
        output, tokens = llama(**prompts.inputs), []
        for _ in range(6):
            tokens.append(output.logits[:, -1].argmax(-1, keepdim=True))
            output = llama(input_ids=tokens[-1], past_key_values=output.past_key_values)
    assert torch.equal(generated, torch.cat(tokens, 1)[0])


def test_streamers_and_stopping_criteria_work(llama):
    class Third(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 3)

    class Collect(TextStreamer):
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen += value.flatten().tolist()

        def end(self):
            self.seen.append("end")

    prompts, streamer = Prompts(MIXED[0]), Collect()
    with prune(llama, FULL, prompts.visual):
        tokens = llama.generate(**prompts.inputs, max_new_tokens=9, streamer=streamer, stopping_criteria=[Third()])
    assert tokens.shape == (1, 3)
    assert streamer.seen[-1] == "end"
    assert streamer.seen[-4:-1] == tokens[0].tolist()


def test_the_cache_tells_the_prompt_as_given_and_holds_what_the_trace_says(llama, batch):
    with prune(llama, FULL, batch.visual) as session:
        cache = llama(**batch.inputs).past_key_values
    assert isinstance(cache, RaggedCache)
    assert cache.get_seq_length() == batch.embeds.shape[1]
    assert cache.next_position.tolist() == [len(kind) for kind in batch.kinds]
    for layer, states in enumerate(cache.layers):
        assert states.keys.shape[2] == max(trace.kv_tokens_per_layer[layer] for trace in session.traces)
    assert cache.nbytes() >= sum(trace.kv_bytes for trace in session.traces)


def test_influence_is_fp32_in_half_precision():
    """The measured cosine of a bf16 model is that of its own bf16 states, not rounded to bf16."""
    model, prompts = random_llama().to(torch.bfloat16), Prompts(MIXED[0])
    config = {"mode": ["middle"], "shallow_mid_layer": 1, "layer_threshold": 0.0, "tokens_threshold": 0.1}
    with prune(model, config, prompts.visual) as session:
        model(inputs_embeds=prompts.embeds.to(torch.bfloat16))
    cosines = np.array([probe.min_cosine for probe in session.traces[0].probes])
    rounded = torch.tensor(cosines).bfloat16().double().numpy()
    assert (np.abs(cosines - rounded) > 1e-6).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["paper", "released"])
def test_half_precision_decides_as_full_precision_does(llama, batch, dtype, name):
    """Decisions of this batch are far from the thresholds; answers in a batch still equal single ones."""
    model = random_llama().to(dtype)
    inputs = {**batch.inputs, "inputs_embeds": batch.embeds.to(dtype)}
    with prune(llama, CONFIGS[name], batch.visual) as full:
        llama(**batch.inputs)
    with prune(model, CONFIGS[name], batch.visual) as half:
        generated = model.generate(**inputs, max_new_tokens=3)
    assert [t.tokens_per_layer for t in half.traces] == [t.tokens_per_layer for t in full.traces]
    assert [t.kept for t in half.traces] == [t.kept for t in full.traces]
    assert half.traces[0].kv_bytes * 2 == full.traces[0].kv_bytes
    assert generated.shape == (len(MIXED), 3)


def test_forwards_that_autograd_follows_prune_and_differentiate():
    model, prompts = random_llama().requires_grad_(True), Prompts(MIXED[3])
    with torch.inference_mode(), prune(model, FULL, prompts.visual) as before:
        model(**prompts.inputs)
    with prune(model, FULL, prompts.visual) as session:
        model(**prompts.inputs).logits[0, -1].max().backward()
    [found], [expected] = session.traces, before.traces
    assert (found.tokens_per_layer, found.cuts) == (expected.tokens_per_layer, expected.cuts)
    assert found.influence == pytest.approx(expected.influence, rel=1e-5)  # attention is computed otherwise
    assert model.model.layers[-1].mlp.up_proj.weight.grad.abs().sum() > 0


def test_influence_stays_fp32_under_autocast(llama):
    """The measurement itself: given one layer's states, autocast does not change a bit of it."""
    from llava.model.pruning.influence import Influence
    from llava.model.pruning.packing import pack
    from llava.model.pruning.probes import LayerStates, run
    from llava.model.pruning.softmax import Softmax

    prompts, empty = Prompts(*MIXED), torch.zeros(1, 0)
    tokens, _ = pack(prompts.embeds, prompts.attention_mask, None, prompts.visual, lambda *_: (empty, empty))
    query, (key, value) = torch.randn(1, 4, 82, 6), torch.randn(2, 1, 2, 82, 6)
    states, asked = LayerStates(tokens, query, key, value, Softmax(0.5)), dict.fromkeys((0, 1), Influence())
    plain = run(states, asked)
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(states, asked)
    assert all(np.array_equal(plain[b].cosine, cast[b].cosine) for b in (0, 1))


def test_hidden_states_are_there_in_every_step_of_generate(llama):
    prompts = Prompts(*MIXED)
    settings = {"max_new_tokens": 3, "output_hidden_states": True, "return_dict_in_generate": True}
    expected = llama.generate(**prompts.inputs, **settings).hidden_states
    with prune(llama, DENSE, prompts.visual):
        found = llama.generate(**prompts.inputs, **settings).hidden_states
    assert [len(step) for step in found] == [len(step) for step in expected] == [7, 7, 7]
    for ours, theirs in zip(found[1] + found[2], expected[1] + expected[2], strict=True):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_a_pruned_prompt_cannot_be_cropped(llama):
    prompts = Prompts(*MIXED)
    with prune(llama, FULL, prompts.visual):
        cache = llama(**prompts.inputs).past_key_values
        llama(input_ids=torch.full((4, 1), 5), past_key_values=cache)
        with pytest.raises(ValueError, match="only 1 tokens follow it"):
            cache.crop(-2)
        cache.batch_select_indices(torch.tensor([2, 0]))
        chosen = llama(input_ids=torch.full((2, 1), 6), past_key_values=cache).logits
        cache = llama(**prompts.inputs).past_key_values
        llama(input_ids=torch.full((4, 1), 5), past_key_values=cache)
        whole = llama(input_ids=torch.full((4, 1), 6), past_key_values=cache).logits
    assert (chosen - whole[[2, 0]]).abs().max() < 1e-5


def test_the_model_is_restored_also_after_an_exception(llama):
    prompts, before = Prompts(MIXED[0]), dict(vars(llama.model))
    implementation = llama.config._attn_implementation
    expected = llama(**prompts.inputs).logits
    with pytest.raises(ZeroDivisionError), prune(llama, FULL, prompts.visual):
        llama(**prompts.inputs)
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="attention_mask"), prune(llama, FULL, prompts.visual):
        llama(inputs_embeds=prompts.embeds, attention_mask=torch.ones(1, 1, 29, 29))
    assert vars(llama.model) == before
    assert llama.config._attn_implementation == implementation
    assert torch.equal(llama(**prompts.inputs).logits, expected)


def test_nothing_leaks_from_one_call_to_the_next(llama):
    long, short = Prompts("tttt" + "v" * 40 + "ttt"), Prompts("tt" + "v" * 6 + "tt", seed=1)
    config = PruningConfig.from_dict(FULL)
    with prune(llama, config, short.visual) as session:
        first = llama(**short.inputs).logits
    alone = session.traces[0]
    with prune(llama, {**FULL, "layer_threshold": 1.0, "tokens_threshold": 0.01}, long.visual):
        llama(**long.inputs)
    with prune(llama, config, short.visual) as session:
        second, third = llama(**short.inputs).logits, llama(**short.inputs).logits
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert session.traces == [alone, alone]


def test_nested_and_concurrent_use_is_refused(llama):
    prompts = Prompts(MIXED[0])
    session = prune(llama, FULL, prompts.visual)
    with session:
        with pytest.raises(RuntimeError, match="being pruned already"), prune(llama, DENSE, prompts.visual):
            pass
        with pytest.raises(RuntimeError, match="being pruned already"), session:
            pass
        inside, refused = threading.Event(), []

        def wait(module, args, kwargs):
            inside.set()
            while not refused:
                pass

        hook = llama.model.layers[0].register_forward_pre_hook(wait, with_kwargs=True)
        worker = threading.Thread(target=lambda: llama(**prompts.inputs))
        worker.start()
        inside.wait()
        try:
            llama(**prompts.inputs)
        except RuntimeError as error:
            refused.append(str(error))
        finally:
            refused.append("")
            worker.join()
            hook.remove()
        assert "two threads" in refused[0]


def test_a_pruned_cache_is_refused_outside_and_foreign_ones_inside(llama):
    prompts = Prompts(MIXED[0])
    with prune(llama, FULL, prompts.visual):
        pruned = llama(**prompts.inputs).past_key_values
    with pytest.raises(RuntimeError, match="holds a pruned prompt"):
        llama(input_ids=torch.tensor([[5]]), past_key_values=pruned)
    dense = llama(**prompts.inputs, use_cache=True).past_key_values
    with prune(llama, FULL, prompts.visual):
        with pytest.raises(ValueError, match="without pruning"):
            llama(input_ids=torch.tensor([[5]]), past_key_values=dense)
        with pytest.raises(ValueError, match="not a StaticCache"):
            llama(**prompts.inputs, past_key_values=StaticCache(llama.config, max_cache_len=40))
        with pytest.raises(ValueError, match="not a DynamicCache that offloads"):
            llama(**prompts.inputs, past_key_values=DynamicCache(config=llama.config, offloading=True))
        for setting in ({"cache_implementation": "static"}, {"cache_implementation": "offloaded"}):
            with pytest.raises(ValueError, match="does not go with pruning: the engine makes its own cache"):
                llama.generate(**prompts.inputs, max_new_tokens=2, **setting)


def test_wrong_masks_and_unknown_models_say_what_was_expected(llama):
    prompts = Prompts(MIXED[0])
    with pytest.raises(ValueError, match="pass prune"):
        prune(llama, FULL)
    with pytest.raises(ValueError, match="must be bool"):
        prune(llama, FULL, prompts.visual.long())
    with pytest.raises(ValueError, match="cannot serve Linear: it has no decoder; python -m llava"):
        prune(torch.nn.Linear(2, 2), FULL)
    with pytest.raises(ValueError, match="7 layers|6 layers"):
        prune(llama, {**FULL, "shallow_mid_layer": 6}, prompts.visual)
    with prune(llama, FULL, prompts.visual), pytest.raises(ValueError, match=r"the model reads \[1, 3\]"):
        llama(inputs_embeds=prompts.embeds[:, :3])
    with prune(llama, {**FULL, "sink_token": 20}, prompts.visual), pytest.raises(ValueError, match="only 20 visual"):
        llama(**prompts.inputs)
    with pytest.raises(ValueError, match="output_attentions"), prune(llama, FULL, prompts.visual):
        llama(**prompts.inputs, output_attentions=True)


def test_a_prompt_that_ends_in_a_visual_token_is_still_read_at_its_end(llama):
    prompts = Prompts("ttt" + "v" * 8)
    with prune(llama, {"mode": ["deep"], "mid_deep_layer": 2}, prompts.visual) as session:
        output = llama(**prompts.inputs)
    assert session.traces[0].tokens_per_layer == [11, 11, 4, 4, 4, 4]
    assert output.logits.shape[1] == 4


def test_subclasses_of_llama_are_known(llama):
    class Mine(LlamaForCausalLM):
        pass

    model = Mine(llama.config).eval()
    with prune(model, DENSE, torch.zeros(1, 4, dtype=torch.bool)) as session:
        model(input_ids=torch.tensor([[1, 2, 3, 4]]))
    assert session.traces[0].visual_tokens == 0


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize(("config", "prefill", "step"), [({"mode": []}, 507, 463), (FULL, 738, 463)])
def test_operations_of_a_llama_are_those_recorded(llama, config, prefill, step):
    """What the engine learns of other layers costs these nothing: counts of the code before it (torch 2.13)."""
    prompts = Prompts(MIXED[3])
    with prune(llama, config, prompts.visual):
        with _Operations() as reading:
            cache = llama(**prompts.inputs).past_key_values
        with _Operations() as decoding:
            llama(input_ids=torch.tensor([[7]]), past_key_values=cache)
    assert (reading.count, decoding.count) == (prefill, step)
