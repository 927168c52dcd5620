"""Training through the engine: its gradients are the untouched model's where nothing is pruned, in every family."""

import copy
import socket
from contextlib import nullcontext

import pytest
import torch
from distributed_steps import step as distributed_step
from family_models import CASES, Batch
from method_examples import EXAMPLES

from llava.model.pruning import prune

PRUNED = {
    "fastv": {"method": "fastv"},
    "visipruner": EXAMPLES["visipruner"],
    "hidrop": EXAMPLES["schedule"],
    "vica": {"method": "schedule", "frozen": True, "read": [0, 2, 3], "system": "zero"},
}
SOME = ("llava original", "internvl qwen3", "qwen2_vl")


def training_batch(name: str) -> tuple[dict, torch.Tensor | None]:
    """Three prompts, padded on the right as trainers pad, labels at every third token; and a bare decoder's mask."""
    case = CASES[name]
    batch = Batch(case, *case.prompts[:3])
    padding = (batch.inputs["attention_mask"] == 0).sum(1).tolist()
    inputs, visual = dict(batch.inputs), batch.visual
    for key in {"input_ids", "attention_mask", "mm_token_type_ids", "inputs_embeds"} & set(inputs):
        inputs[key] = torch.stack([row.roll(-n, 0) for row, n in zip(inputs[key], padding, strict=True)])
    if visual.shape == inputs["attention_mask"].shape:
        visual = torch.stack([row.roll(-n, 0) for row, n in zip(visual, padding, strict=True)])
    ids = inputs.get("input_ids", torch.full_like(inputs["attention_mask"], 7))
    text = (ids >= 0) & ~visual if ids.shape == visual.shape else ids >= 0
    counted = inputs["attention_mask"].bool() & text & (torch.arange(ids.shape[1]) % 3 == 2)
    inputs["labels"] = ids.masked_fill(~counted, -100)
    return inputs, visual if case.layout == "bare" else None


def step(name, config, reentrant=None, autocast=False):
    """Loss and all gradients of one step, and the session."""
    inputs, mask = training_batch(name)
    model = copy.deepcopy(CASES[name].model).requires_grad_(True).train()
    if reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if "inputs_embeds" in inputs:  # reentrant checkpoints need an input that learns
        inputs["inputs_embeds"] = inputs["inputs_embeds"].clone().requires_grad_(True)
    session = nullcontext() if config is None else prune(model, config, mask)
    torch.manual_seed(0)  # towers with stochastic depth
    with session, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**inputs, use_cache=False)
    output.loss.backward()
    flat = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()]
    return output.loss.item(), torch.cat(flat), session


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", CASES)
def test_nothing_pruned_is_the_untouched_model_with_both_kinds_of_checkpoints(name):
    loss, expected, _ = step(name, None)
    for reentrant in (None, True, False):
        own, found, session = step(name, {"method": "none"}, reentrant)
        assert own == pytest.approx(loss, rel=1e-5) and len(session.traces) == 3
        assert difference(found, expected) < 1e-5


@pytest.mark.parametrize("config", PRUNED)
@pytest.mark.parametrize("name", SOME)
def test_checkpoints_change_no_gradient_of_a_pruned_step(name, config):
    """The recompute runs outside the session, where layers have their own attention back, and decides nothing."""
    loss, expected, session = step(name, PRUNED[config])
    assert any(trace.flops("all") < trace.dense_flops("all") for trace in session.traces)
    for reentrant in (True, False):
        own, found, again = step(name, PRUNED[config], reentrant)
        # a first pass without gradients may take another kernel, which rounds otherwise
        assert own == pytest.approx(loss, rel=1e-5) and difference(found, expected) < 1e-5
        assert [trace.cuts for trace in again.traces] == [trace.cuts for trace in session.traces]


@pytest.mark.parametrize("name", SOME)
def test_autocast_costs_a_packed_step_no_more_precision_than_a_padded_one(name):
    _, exact, _ = step(name, None)
    padded = difference(step(name, None, autocast=True)[1], exact)
    for reentrant in (None, False):
        packed = difference(step(name, {"method": "none"}, reentrant, autocast=True)[1], exact)
        assert 0 < packed < 1.5 * padded
    hidrop = [step(name, PRUNED["hidrop"], autocast=cast) for cast in (False, True)]
    assert hidrop[1][2].traces[0].tokens_per_layer == hidrop[0][2].traces[0].tokens_per_layer


def test_only_rows_with_a_label_reach_the_head_in_training():
    inputs, mask = training_batch("llava")
    model = copy.deepcopy(CASES["llava"].model)
    with torch.no_grad(), prune(model, {"method": "none"}, mask):
        whole = model(**inputs)
        trained = model.train()(**inputs)
    assert trained.logits.shape[:2] == (1, (inputs["labels"] != -100).sum())
    assert whole.logits.shape[:2] == inputs["labels"].shape
    assert trained.loss == pytest.approx(whole.loss.item(), rel=1e-6)
    with prune(model, {"method": "none"}, mask), pytest.raises(ValueError, match="leave logits_to_keep out"):
        model(**inputs, logits_to_keep=1)
    with prune(model, {"method": "none"}, mask), pytest.raises(ValueError, match="one per token as given"):
        model(**inputs | {"labels": inputs["labels"][:, 1:]})


def test_two_processes_average_the_gradients_of_one():
    """DDP and FSDP2, with and without checkpoints, packed and pruned; each process prunes what it sees."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(distributed_step, (port,), nprocs=2)
