"""Features around the decoder: drafts, earlier turns, labels, checkpointing, compilation, adapters, offloading."""

import copy
from contextlib import nullcontext

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module
from family_case import Batch
from family_models import CASES
from transformers import GenerationConfig

from llava import prune

FASTV = {"method": "fastv"}
HF = ("llava", "llava_next", "llava_onevision", "internvl qwen2", "qwen2_vl", "qwen2_5_vl")
ORIGINAL = ("llava original", "mobilevlm")
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def new_tokens(model, batch, config=None, **settings):
    """Return (new tokens, traces) of greedy decoding."""
    with torch.no_grad(), nullcontext() if config is None else prune(model, config) as session:
        tokens = model.generate(**batch.inputs, **GREEDY | settings)[:, -(GREEDY | settings)["max_new_tokens"] :]
    return tokens.tolist(), [] if session is None else session.traces


def with_draft(name):
    """Return a prompt whose last word occurs before, so that prompt lookup proposes a draft at once."""
    batch = Batch(CASES[name], "tittttttt")
    batch.inputs["input_ids"][0, -5] = batch.inputs["input_ids"][0, -1]
    return batch


@pytest.mark.parametrize("name", [*HF, *ORIGINAL])
def test_prompt_lookup_gives_the_tokens_and_decisions_of_greedy_decoding(name):
    batch, model = with_draft(name), CASES[name].model
    for config in ({"method": "none"}, FASTV):
        plain, traces = new_tokens(model, batch, config)
        tokens, drafted = new_tokens(model, batch, config, prompt_lookup_num_tokens=3, max_matching_ngram_size=1)
        assert tokens == plain
        assert [(trace.kept, trace.prompt_tokens) for trace in drafted] == [
            (trace.kept, trace.prompt_tokens) for trace in traces
        ]


def test_an_accepted_draft_token_does_not_move_the_decision():
    case, batch = CASES["llava"], with_draft("llava")
    ids, accepted = batch.inputs["input_ids"], 0
    for word in range(5, 90):
        ids[0, -4] = word  # what prompt lookup proposes
        plain, traces = new_tokens(case.model, batch, FASTV, max_new_tokens=1)
        if plain[0][0] == word:
            accepted += 1
            plain, traces = new_tokens(case.model, batch, FASTV)
            lookup = {"prompt_lookup_num_tokens": 1, "max_matching_ngram_size": 1}
            tokens, drafted = new_tokens(case.model, batch, FASTV, **lookup)
            assert tokens == plain and drafted[0].kept == traces[0].kept
    assert accepted


def test_a_draft_model_gives_the_tokens_of_greedy_decoding():
    case, batch = CASES["qwen2_vl"], Batch(CASES["qwen2_vl"], "ttittt")
    draft = copy.deepcopy(case.model)
    plain, _ = new_tokens(case.model, batch, FASTV)
    assert new_tokens(case.model, batch, FASTV, assistant_model=draft)[0] == plain


@pytest.mark.parametrize("name", HF)
def test_without_a_cache_every_step_decides_as_the_first(name):
    case = CASES[name]
    batch = Batch(case, *case.prompts[:2])
    plain, traces = new_tokens(case.model, batch, FASTV)
    tokens, again = new_tokens(case.model, batch, FASTV, use_cache=False)
    assert tokens == plain
    assert [trace.kept for trace in again] == [trace.kept for trace in traces] * GREEDY["max_new_tokens"]


@pytest.mark.parametrize(
    "settings", [{"prefill_chunk_size": 4}, {"cache_implementation": "offloaded"}, {"assistant_early_exit": 2}]
)
def test_settings_of_generate_that_cannot_be_pruned_are_refused_in_one_line(settings):
    (name,) = settings
    batch = Batch(CASES["llava"], "ttitt")
    for given in (settings, {"generation_config": GenerationConfig(**settings)}):
        with (
            prune(CASES["llava"].model, FASTV),
            pytest.raises(ValueError, match=f"^{name}=.* does not go with pruning"),
        ):
            CASES["llava"].model.generate(**batch.inputs, **given)


@pytest.mark.parametrize("name", ["llava", *ORIGINAL])
def test_a_second_turn_continues_the_cache_of_the_first(name):
    """All ids so far are given, images too in the original layout, and the image lies in the cached part."""
    case, new = CASES[name], torch.tensor([[11, 12, 13]])
    batch = Batch(case, "ttittt")
    inputs = dict(batch.inputs) if case.layout == "markers" else {}
    expected = None
    for config in (None, {"method": "none"}):
        with torch.no_grad(), nullcontext() if config is None else prune(case.model, config):
            first = case.model.generate(**batch.inputs, **GREEDY, return_dict_in_generate=True)
            inputs["input_ids"] = torch.cat([batch.inputs["input_ids"], first.sequences[:, -6:], new], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            tokens = case.model.generate(**inputs, past_key_values=first.past_key_values, **GREEDY)[0, -6:].tolist()
        expected = tokens if config is None else expected
        assert tokens == expected


def test_a_placeholder_that_the_model_wrote_is_text():
    case, batch = CASES["llava"], Batch(CASES["llava"], "ttittt")
    written = torch.tensor([[case.model.config.image_token_id, 11]])
    logits = []
    for config in (None, {"method": "none"}):
        with torch.no_grad(), nullcontext() if config is None else prune(case.model, config):
            cache = case.model(**batch.inputs, use_cache=True).past_key_values
            logits.append(case.model(input_ids=written, past_key_values=cache).logits)
    assert (logits[0] - logits[1]).abs().max() < 1e-4


@pytest.mark.parametrize("name", [*HF, *ORIGINAL])
def test_labels_are_compared_at_the_surviving_tokens(name):
    case = CASES[name]
    batch = Batch(case, *case.prompts[:2])
    begins = batch.attention_mask.cumsum(1) <= 1  # nothing but padding predicts a prompt's first token
    labels = batch.ids.masked_fill(batch.visual | begins, -100)
    if case.layout == "markers":  # one label per id, spliced by the model, which leaves out what nothing predicts
        labels = batch.inputs["input_ids"]
    with torch.no_grad():
        dense = case.model(**batch.inputs, labels=labels)
        with prune(case.model, {"method": "none"}):
            assert (case.model(**batch.inputs, labels=labels).loss - dense.loss).abs() < 1e-5
        with prune(case.model, FASTV) as session:
            pruned = case.model(**batch.inputs, labels=labels)
        # by hand: text after the image survives, each token predicts its own successor
        losses = []
        for b in range(2):
            real = batch.ids[b][batch.attention_mask[b].bool()]
            visual = batch.visual[b][batch.attention_mask[b].bool()]
            kept = [n for n in range(len(real)) if not visual[n] or n in session.traces[b].cuts[-1][1]]
            rows = pruned.logits[b, -len(kept) :].log_softmax(-1)
            losses += [-rows[i, real[n + 1]] for i, n in enumerate(kept[:-1]) if not visual[n + 1]]
        assert (pruned.loss - torch.stack(losses).mean()).abs() < 1e-5
        with prune(case.model, FASTV), pytest.raises(ValueError, match="leave logits_to_keep out"):
            case.model(**batch.inputs, labels=labels, logits_to_keep=1)
        with prune(case.model, {"method": "none"}, prefix_cache=True):
            case.model(**batch.inputs)
            with pytest.raises(ValueError, match="leave prefix_cache out"):
                case.model(**batch.inputs, labels=labels)


@pytest.mark.parametrize("how", ["model.compile()", "torch.compile(model.forward)"])
def test_a_compiled_model_runs_pruned(how):
    case, batch = CASES["llava"], Batch(CASES["llava"], "tttittt")
    model = copy.deepcopy(case.model)
    if how == "model.compile()":
        model.compile(backend="eager")
    else:
        model.forward = torch.compile(model.forward, backend="eager")
    dense = new_tokens(model, batch)[0]
    assert new_tokens(model, batch, FASTV)[0] == new_tokens(case.model, batch, FASTV)[0]
    assert new_tokens(model, batch)[0] == dense == new_tokens(case.model, batch)[0]


def test_a_peft_model_is_pruned_with_its_adapters():
    peft = pytest.importorskip("peft")
    case, batch = CASES["llava"], Batch(CASES["llava"], "tttittt")
    lora = peft.LoraConfig(target_modules=".*language_model.*q_proj", init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(copy.deepcopy(case.model), lora).eval()
    with torch.no_grad():
        with prune(model, FASTV) as session:
            adapted = model(**batch.inputs).logits[:, -1]
            assert len(model.generate(**batch.inputs, max_new_tokens=2)) == 1 and len(session.traces) == 2
        assert "generate" not in vars(model.get_base_model())
        with prune(model, {"method": "none"}, prefix_cache=True):  # which must not outlive a change of adapters
            model(**batch.inputs)
            with model.disable_adapter():
                plain = model(**batch.inputs).logits[:, -1]
        with prune(copy.deepcopy(model).merge_and_unload(), FASTV) as session:
            merged = session.model(**batch.inputs).logits[:, -1]
        assert (adapted - merged).abs().max() < 1e-3
        assert (plain - case.model(**batch.inputs).logits[:, -1]).abs().max() < 1e-4


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", [*HF, *ORIGINAL])
def test_an_offloaded_model_gives_the_same_answers(name, cached):
    """All weights lie on the meta device between calls, as accelerate's device_map with cpu or disk leaves them."""
    case = CASES[name]
    batch = Batch(case, *case.prompts[:2])
    with torch.no_grad(), prune(case.model, FASTV) as session:
        expected = case.model.generate(**batch.inputs, **GREEDY).tolist()
    model = copy.deepcopy(case.model)
    # transformers' SigLIP tower does not run offloaded, dense either
    offloaded = model.model.language_model if name == "llava_onevision" else model
    cpu_offload(offloaded, execution_device="cpu")
    assert next(offloaded.parameters()).is_meta
    if name == "llava_next":  # generate reads it outside the module that owns it, dense as well
        remove_hook_from_module(model.model)
        model.model.image_newline = copy.deepcopy(case.model.model.image_newline)
    with torch.no_grad(), prune(model, FASTV, prefix_cache=cached) as again:
        for _ in range(1 + cached):
            assert model.generate(**batch.inputs, **GREEDY).tolist() == expected
    assert [trace.kept for trace in again.traces[:2]] == [trace.kept for trace in session.traces]
    if cached:
        assert again.prefix_cache.reused.found >= 2
