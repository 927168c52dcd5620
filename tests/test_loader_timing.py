"""`ForwardTimer`: which forwards count as prefill, decoding and vision, and that it leaves a model as it was."""

import time
from contextlib import nullcontext

import pytest
import torch
from llava_fixtures import make_model, prompts

from llava import PruningConfig, prune
from llava.eval.runner.timing import ForwardTimer, Milliseconds

CONFIG = PruningConfig.from_dict({"mode": ["deep"], "mid_deep_layer": 2})


@pytest.fixture(scope="module")
def model():
    model = make_model()
    model.encode_images(torch.zeros(1, 3, 28, 28))  # transformers leaves hooks of its own at the first call
    return model


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("pruned", [False, True])
def test_stages_are_told_apart(model, pruned):
    ids, mask, pixels = prompts("tit", "ttiitt")
    arguments = {"attention_mask": mask, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    before = hooks(model)
    start = time.perf_counter()
    with prune(model, CONFIG) if pruned else nullcontext(), ForwardTimer(model) as timer:
        model.generate(ids, images=pixels, **arguments)
        spent = timer.take()
        assert timer.take() == Milliseconds()
    elapsed = 1000 * (time.perf_counter() - start)
    assert (spent.prefills, spent.decode_steps) == (1, 4)
    assert min(spent.prefill, spent.decode, spent.vision) > 0
    assert spent.prefill + spent.decode + spent.vision <= elapsed
    assert hooks(model) == before


def test_an_exception_in_a_forward_leaves_the_timer_usable(model):
    ids, mask, pixels = prompts("tit")
    before = hooks(model)
    with ForwardTimer(model) as timer:
        with pytest.raises(Exception):  # noqa: B017 - whatever the decoder says to a bad shape
            model.model(inputs_embeds=torch.zeros(1, 3, 5))
        timer.take()
        model(input_ids=ids, attention_mask=mask, images=pixels)
        spent = timer.take()
    assert (spent.prefills, spent.decode_steps) == (1, 0)
    assert hooks(model) == before
