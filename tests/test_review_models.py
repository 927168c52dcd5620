"""Regression tests: each covers a defect that a review of all models found."""

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import FULL, Prompts, random_llama
from torch.utils._python_dispatch import TorchDispatchMode

from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.probes import fetch


class Launches(TorchDispatchMode):
    """Counts the operations that run on the device, by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function)] += 1
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("kinds", [("tttt" + "v" * 20 + "ttttt",), ("tt" + "v" * 9 + "ttt", "t" + "v" * 12 + "tttt")])
def test_fetching_what_a_layer_measured_copies_nothing_first(kinds):
    """A probed layer brings one tensor to the host; joining it with nothing was one launch more in every such layer."""
    prompts, model, joined = Prompts(*kinds), random_llama(layers=6), []
    probed = FULL | {"mode": ["middle"], "shallow_mid_layer": 1, "layer_threshold": 0.0}  # to the end: none is chosen
    for config in ({"mode": []}, probed):
        with prune(model, config, visual_mask=prompts.visual) as session, torch.no_grad(), Launches() as launches:
            model(**prompts.inputs, logits_to_keep=1)
        joined.append(launches.counts["aten.cat.default"])
    assert [len(trace.probes) for trace in session.traces] == [5] * len(kinds)
    assert joined[0] == joined[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fetch_returns_each_tensor_as_it_was_in_full_precision(dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 2, 5), (4,), (), (0, 3))]
    for given in (tensors, tensors[:1], [tensors[0].transpose(0, 2).requires_grad_()]):
        for tensor, array in zip(given, fetch(given), strict=True):
            assert array.dtype == np.float32 and array.shape == tuple(tensor.shape)
            assert np.array_equal(array, tensor.detach().float().numpy())


def test_settings_that_were_not_given_are_not_blamed():
    """`null` for a list, and layers that only the depth of the model made equal, are one line that says so."""
    with pytest.raises(ValueError, match="'ratios' must be a list of numbers, got NoneType None"):
        PruningConfig.from_dict({"method": "pyramiddrop", "ratios": None})
    config = PruningConfig.from_dict({"method": "sparsevlm"})
    with pytest.raises(ValueError, match="model's 6 layers are too few for pruning layers .1, 1, 3.; give 'layers'"):
        config.resolved(6)
    assert config.resolved(9).layers == (1, 2, 4)
