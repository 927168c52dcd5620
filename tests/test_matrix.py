"""Every family × every method × every preset: a new method is a row of `EXAMPLES`, a new family a row of `CASES`."""

import dataclasses

import pytest
import torch
from family_case import LAYERS
from family_models import CASES, batch_of
from method_examples import EXAMPLES

from llava.model.pruning import PruningConfig
from llava.model.pruning.families import family_of
from llava.model.pruning.methods import METHODS
from llava.model.pruning.methods.visipruner import PRESETS

NEW = 3


def _variants() -> dict[str, dict]:
    variants = {}
    for name, cls in ((name, METHODS[name]) for name in EXAMPLES if name in METHODS):
        presets = PRESETS if "preset" in {field.name for field in dataclasses.fields(cls)} else (None,)
        for preset in presets:
            more = {} if preset is None else {"preset": preset}
            variants[f"{name} {preset}" if preset else name] = EXAMPLES[name] | more
    return variants | {"schedule frozen": {"method": "schedule", "frozen": True, "read": [0, 2], "system": "zero"}}


VARIANTS = _variants()


IMAGES_WHOLE = ("evs", "dycoke", "frames")
"""Methods for video that drop nothing of an image."""


def run(name, config, *words):
    """Greedy generation of a batch: session, new tokens [B, NEW], logits of every step [NEW, B, vocabulary]."""
    model, batch = CASES[name].model, batch_of(name, *words)
    with CASES[name].prune(config, batch) as session:
        output = model.generate(
            **batch.inputs, max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return session, output.sequences[:, -NEW:], torch.stack(output.logits)


def test_every_method_has_an_example():
    assert set(EXAMPLES) == set(METHODS)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_runs_every_method(name, variant):
    config, batch = PruningConfig.from_dict(VARIANTS[variant]), batch_of(name)
    if config.reads_vision:
        encoder = family_of(CASES[name].model).encoder(CASES[name].model)
        if encoder is None or not all(getattr(encoder, need) for need in config.encoder_needs):
            with pytest.raises(ValueError, match="image encoder"):
                run(name, config)
            return
    session, tokens, logits = run(name, config)
    assert len(session.traces) == len(batch.words) and logits.isfinite().all()
    if "v" in "".join(batch.words) or variant not in IMAGES_WHOLE:
        assert any(trace.tokens_per_layer[-1] < trace.prompt_tokens for trace in session.traces)
    for row, (word, trace) in enumerate(zip(batch.words, session.traces, strict=True)):
        visual = set(batch.visual[row, -batch.lengths[row] :].nonzero()[:, 0].tolist())
        assert (trace.prompt_tokens, trace.visual_tokens) == (batch.lengths[row], len(visual))
        counts = [trace.prompt_tokens, *trace.tokens_per_layer]
        assert len(counts) == 1 + LAYERS
        inside = [counts[0], *counts[1 + config.enter * bool(visual) :]]
        assert inside == sorted(inside, reverse=True)
        assert counts[1 : 1 + config.enter] == [trace.prompt_tokens - len(visual)] * config.enter
        read = [n + frozen for n, frozen in zip(trace.tokens_per_layer, trace.frozen, strict=True)]
        assert all(kv <= entered for kv, entered in zip(trace.kv_tokens_per_layer, read, strict=True))
        for kept in (trace.kept, *(positions for _, positions in trace.cuts)):
            assert set(kept) <= visual and kept == sorted(kept)
        if not visual:
            assert counts == [len(word)] * (1 + LAYERS)
        alone, own_tokens, own_logits = run(name, config, word)
        assert alone.traces[0].tokens_per_layer == trace.tokens_per_layer
        assert alone.traces[0].kv_tokens_per_layer == trace.kv_tokens_per_layer
        assert (alone.traces[0].kept, alone.traces[0].cuts) == (trace.kept, trace.cuts)
        assert own_tokens[0].tolist() == tokens[row].tolist()
        assert (own_logits[:, 0] - logits[:, row]).abs().max() < 1e-4
