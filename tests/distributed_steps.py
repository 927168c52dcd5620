"""One training step on two CPU processes (gloo), each with prompts of its own: what tests/test_gradients.py spawns."""

from __future__ import annotations

import copy
import os
from contextlib import nullcontext

import torch
import torch.distributed as dist
from conftest import Prompts, random_llama
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from llava.model.pruning import prune

RANKS = (("ttt" + "v" * 9 + "ttttt", "tv" + "v" * 11 + "ttt"), ("ttttt", "tt" + "v" * 8 + "tttt"))
CONFIGS = {
    "nothing": {"method": "none"},
    "hidrop": {"method": "schedule", "enter": 1, "keep": {"2": 5}, "exit": 3},
    "vica": {"method": "schedule", "frozen": True, "read": [0, 2], "system": "zero"},
}


def loss_of(model, prompts: Prompts, config: dict | None, wrapped=None) -> torch.Tensor:
    ids = 3 + (prompts.embeds[..., 0] * 1e4).long() % 90
    inputs = {"input_ids": ids, "attention_mask": prompts.attention_mask, "position_ids": prompts.position_ids}
    labels = ids.masked_fill(prompts.visual | (prompts.position_ids < 2), -100)
    with nullcontext() if config is None else prune(model, config, prompts.visual):
        return (model if wrapped is None else wrapped)(**inputs, labels=labels, use_cache=False).loss


def gradients(model) -> torch.Tensor:
    found = [getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in model.parameters() if p.grad is not None]
    return torch.cat([grad.flatten() for grad in found])


def step(rank: int, port: int) -> None:
    """Compare the ranks' averaged gradients with those of one process that takes both shares."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    start = random_llama(layers=4).train().requires_grad_(True)
    shares = [Prompts(*words, seed=number) for number, words in enumerate(RANKS)]
    for name, config in CONFIGS.items():
        alone = copy.deepcopy(start)
        for prompts in shares:  # the untouched model where nothing is pruned
            (loss_of(alone, prompts, None if name == "nothing" else config) / 2).backward()
        expected = gradients(alone)
        for how in ("ddp", "fsdp2", "fsdp2 with checkpoints"):
            model = copy.deepcopy(start)
            if "checkpoints" in how:
                model.gradient_checkpointing_enable()
            if how == "ddp":
                wrapped = DistributedDataParallel(model)
            else:
                mesh = init_device_mesh("cpu", (2,))
                for layer in model.model.layers:
                    fully_shard(layer, mesh=mesh)
                wrapped = fully_shard(model, mesh=mesh)
            loss_of(model, shares[rank], config, wrapped).backward()
            difference = (gradients(model) - expected).norm() / expected.norm()
            assert difference < 1e-5, f"{name} under {how}: gradients differ by {difference:.1e}"
    dist.destroy_process_group()
