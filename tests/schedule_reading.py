"""A slow reading of schedules (HiDrop, ViCA) that autograd follows: one prompt, lists, loops, full [H, T, T] masks.

It shares nothing with `llava.model.pruning`: visual rows that wait or never run are masked out of a sequence that has
its full length in every layer. Weights are those of an fp32 `LlamaForCausalLM`, read by tests/reference.py's functions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from reference import finish_layer, linear, per_query_head, project, rms_norm
from torch import Tensor


@dataclass
class Reading:
    """`runs`: rows that run each layer; `seen`: rows whose keys each layer keeps; `rows`: those that are left."""

    runs: list[list[int]] = field(default_factory=list)
    seen: list[list[int]] = field(default_factory=list)
    cache: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    cuts: list[tuple[int, list[int]]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    counted: int = 0
    loss: Tensor = field(default_factory=lambda: torch.empty(0))


def read(model, embeds: Tensor, visual: list[bool], schedule: dict, labels: list[int] | None = None) -> Reading:
    """Read embeds [T, D] under a schedule; with `labels` (−100: none) as in training, and with a summed loss."""
    eps, length = model.config.rms_norm_eps, len(embeds)
    visual = [*visual[:-1], False]
    image = [i for i in range(length) if visual[i]]
    text = [i for i in range(length) if not visual[i]]
    frozen = schedule.get("frozen", False)
    keep = {int(layer): count for layer, count in schedule.get("keep", {}).items()}
    alive, x, reading = list(image), embeds, Reading()
    for layer, block in enumerate(model.model.layers):
        count = keep.get(layer)
        if image and count is not None and count < len(alive):
            rows = [length - 1]
            if labels is not None:
                present = sorted(text + alive)
                starts = [i for i in range(1, length) if labels[i] != -100 and labels[i - 1] == -100]
                rows = [max(j for j in present if j < i) for i in starts]
            if rows:
                scores = _scores(model, layer, x, sorted(text + alive), alive, rows, schedule.get("rank", "attention"))
                alive = [j for j, s in zip(alive, scores, strict=True) if sum(o > s for o in scores) < count]
                reading.cuts.append((layer - 1, alive))
        if image and layer == schedule.get("exit"):
            alive = []
            reading.cuts.append((layer - 1, []))
        runs = text if frozen or layer < schedule.get("enter", 0) else sorted(text + alive)
        seen = runs
        if frozen and image and layer in schedule.get("read", range(len(model.model.layers))):
            seen = list(range(length))
        q, k, v = project(model, layer, rms_norm(block.input_layernorm, x, eps), list(range(length)))
        allowed = torch.ones(length, length).tril().bool()
        allowed[:, [j for j in range(length) if j not in seen]] = False
        weights = (q @ per_query_head(model, k).transpose(1, 2) / q.shape[-1] ** 0.5).masked_fill(~allowed, -1e9)
        weights = weights.softmax(-1)
        if image and schedule.get("system") == "zero":
            weights = weights * torch.tensor([float(i >= image[0]) for i in range(length)])[:, None]
        output = (weights @ per_query_head(model, v)).transpose(0, 1).reshape(length, -1)
        after = finish_layer(model, layer, x, output)
        x = torch.where(torch.tensor([i in runs for i in range(length)])[:, None], after, x)
        reading.runs.append(runs)
        reading.seen.append(seen)
        reading.cache.append((k[:, seen].detach(), v[:, seen].detach()))
    reading.rows = reading.runs[-1]
    logits = linear(model.lm_head, rms_norm(model.model.norm, x, eps))
    reading.logits = logits[reading.rows]
    if labels is not None:
        counted = [i for i in reading.rows if i + 1 < length and labels[i + 1] != -100]
        wanted = torch.tensor([labels[i + 1] for i in counted], dtype=torch.long)
        reading.counted = len(counted)
        reading.loss = F.cross_entropy(logits[counted], wanted, reduction="sum")
    return reading


@torch.no_grad()
def _scores(model, layer: int, x: Tensor, present: list[int], alive: list[int], rows: list[int], rank: str) -> list:
    """Mean over `rows` of the attention (over heads) that they pay to `alive`, in `layer`; of L2 in the one before."""
    if rank == "influence":
        raise NotImplementedError("tests/test_schedule.py reads influence from a trace of the dense layers")
    block = model.model.layers[layer]
    q, k, _ = project(model, layer, rms_norm(block.input_layernorm, x, model.config.rms_norm_eps), list(range(len(x))))
    k = per_query_head(model, k)
    total = torch.zeros(len(alive))
    for row in rows:
        columns = [j for j in present if j <= row]
        weights = (q[:, row, None] @ k[:, columns].transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)[:, 0].mean(0)
        total += torch.stack([weights[columns.index(j)] if j in columns else torch.tensor(0.0) for j in alive])
    return (total / len(rows)).tolist()


@torch.no_grad()
def decode(model, reading: Reading, token: int, position: int) -> Tensor:
    """Feed one token at `position` to what each layer kept; returns logits [vocab]."""
    eps = model.config.rms_norm_eps
    x = model.model.embed_tokens.weight[token][None]
    for layer, (keys, values) in enumerate(reading.cache):
        q, k, v = project(model, layer, rms_norm(model.model.layers[layer].input_layernorm, x, eps), [position])
        keys, values = torch.cat([keys, k], 1), torch.cat([values, v], 1)
        scores = q @ per_query_head(model, keys).transpose(1, 2) / q.shape[-1] ** 0.5
        output = scores.softmax(-1) @ per_query_head(model, values)
        x = finish_layer(model, layer, x, output.transpose(0, 1).reshape(1, -1))
    return linear(model.lm_head, rms_norm(model.model.norm, x, eps)[0])
