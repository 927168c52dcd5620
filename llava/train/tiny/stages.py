"""The stages of the recipe: steps, visual tokens, questions, learning rates, pruning.

tower → few → some → all → hard. The tower learns dense labels alone. Then projector and decoder learn to answer, first
from 24 visual tokens (the objects' patches before others), then from 64, which hold every object and cost less than all
144. So far both recipes share every step. In `all` the pruning-aware recipe prunes a part of its batches, the plain one
none. `hard` begins again at the full learning rates and asks most what was learned least. In all of them the tower also
sees shapes in colours that have no name: without them it knows a shape only in the colours in which it saw it.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from llava.train.tiny.decoder import DENSE, Plan
from llava.train.tiny.modules import TinyLlava
from llava.train.tiny.muon import Muon

SHARED_STAGES = 3
PAINTED = 0.3
"""Pictures with shapes in colours that have no name, for the tower alone, for every picture that is asked about."""
_CLIP = 1.0
_EVERY = 10**6
"""More than there are visual tokens: the layer chooses, and leaves out none."""
_GLIMPSES = 0.5
"""Share of the batches that are not pruned in which text, with `glance`, reads nothing at that layer either."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    share:
        of the minutes
    tokens:
        visual tokens that the decoder sees; None: all; 0: there is no decoder yet
    styles:
        how often a batch has each style of asking (see `conversations.STYLES`)
    warmup, final:
        steps over which the learning rates rise; what they fall to, along a cosine, as a share of their height
    pointing, heads:
        weight of the loss on where the last prompt token looks (see `pointing`), which falls with the learning rates;
        which heads in its two layers
    verdicts:
        weight of the loss on what quoted characters say about the sign (see `pointing.verdict_loss`)
    glance:
        how often a pruned batch reads nothing at the layer that only chooses what later ones read
    """

    name: str
    share: float
    tokens: int | None
    styles: tuple[tuple[str, float], ...] = ()
    warmup: int = 0
    final: float = 1.0
    pointing: float = 0.0
    heads: tuple[str, str] = ("together", "together")
    verdicts: float = 0.0
    glance: float = 0.0

    def rate(self, step: int, steps: int) -> float:
        """Return the factor of the learning rates at a step (from 0) of `steps`."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        return rise * (self.final + (1 - self.final) * cosine)


STAGES = (
    Stage("tower", 0.075, 0, warmup=50, final=0.03),
    Stage("few", 0.015, 24, (("captions", 0.4), ("simple", 0.4), ("simple short", 0.2)), warmup=60, pointing=0.3),
    Stage(
        "some",
        0.24,
        64,
        (("captions", 0.06), ("simple", 0.14), ("bare", 0.55), ("short", 0.1), ("turns", 0.15)),
        pointing=0.3,
        heads=("apart", "apart"),
    ),
    Stage(
        "all",
        0.27,
        None,
        (("captions", 0.02), ("simple", 0.03), ("bare", 0.45), ("short", 0.25), ("turns", 0.25)),
        final=0.3,
        pointing=0.3,
        heads=("apart", "apart"),
    ),
    Stage(
        "hard",
        0.4,
        None,
        (("captions", 0.02), ("hard", 0.68), ("hard turns", 0.3)),
        warmup=20,
        final=0.02,
        pointing=0.3,
        heads=("alike", "apart"),
        verdicts=0.5,
        glance=1.0,
    ),
)


def draw_plan(rng: np.random.Generator, layers: int, glance: float = 0.0) -> Plan:
    """Draw what the pruning-aware recipe prunes in one batch (the preset `paper`, its parts, or nothing).

    With 12 layers: shallow are 0–3, the filter layer is mostly 4, nothing reads the image from 8, 9 or 10 on. A model
    that may read the whole image at the filter layer soon reads it there once and for all and needs none of the tokens
    that are kept; `glance` is how often it may not.
    """
    shallow, deep = layers // 3, layers * 2 // 3
    first, last = frozenset(range(shallow)), frozenset(range(deep + int(rng.integers(0, 3)), layers))
    isolated = first if rng.random() < 0.7 else frozenset()
    part = rng.random()
    glanced = glance > 0 and bool(rng.random() < glance)
    glimpse = Plan(filter_layer=shallow, kept=_EVERY, glance=True) if glanced else DENSE
    if part < 0.35:
        return glimpse if part < 0.35 * _GLIMPSES else DENSE
    if part < 0.45:
        return replace(glimpse, blind=first, isolated=isolated)
    if part < 0.52:
        return Plan(blind=last)
    merged = bool(rng.random() < 0.5)
    blind = (first - {0} if merged else first) | last
    filter_layer = shallow + int(rng.choice(3, p=(0.7, 0.2, 0.1)))
    kept = int(rng.choice((4, 5, 6, 8, 10, 14, 20, 32)))
    if rng.random() < 0.5:  # in the engine the kept tokens read each other; here all do, or none
        isolated = isolated | frozenset(range(filter_layer + 1, layers))
    return Plan(blind, merged, isolated, filter_layer, kept, glanced)


def choose_tokens(labels: torch.Tensor, count: int, rng: np.random.Generator) -> torch.Tensor:
    """Choose visual tokens for a curriculum stage, objects' patches first: int64 [B, count], ascending.

    labels: int8 [B, 7, 12, 12].
    """
    objects = (labels[:, 0].flatten(1) > 0).float()
    chance = torch.from_numpy(rng.random(objects.shape, np.float32)).to(labels.device)
    return (2 * objects + chance).topk(count, -1).indices.sort(-1).values


def _split(named, stacked):
    """Sort 2-D weights of layers into Muon groups by how many matrices are stacked in them; the rest is for AdamW."""
    groups: dict[int, list] = {}
    rest = []
    for name, p in named:
        if p.ndim == 2 and name.startswith("layers."):
            groups.setdefault(next((n for key, n in stacked if key in name), 1), []).append(p)
        else:
            rest.append(p)
    return groups, rest


_STACKED = (("qkv", 3), ("gate_up", 2))


class Optimizers:
    """Muon for the matrices of the layers, AdamW for everything else, with one factor for all learning rates.

    tower_only:
        the first stage; later the tower learns at a quarter of the decoder's rates
    """

    def __init__(self, model: TinyLlava, tower_only: bool):
        tower, tower_rest = _split(model.tower.named_parameters(), _STACKED)
        rates = (0.02, 2e-3) if tower_only else (0.006, 5e-4)
        muon = [{"params": ps, "parts": parts, "lr": rates[0]} for parts, ps in tower.items()]
        adam = [{"params": tower_rest, "lr": rates[1]}]
        if not tower_only:
            others = [(n, p) for n, p in model.named_parameters() if not n.startswith("tower.")]
            decoder, rest = _split(others, _STACKED)
            muon += [{"params": ps, "parts": parts, "lr": 0.008} for parts, ps in decoder.items()]
            adam.append({"params": rest, "lr": 1.5e-3})
        self.both = (Muon(muon), torch.optim.AdamW(adam, betas=(0.9, 0.98), weight_decay=0.02))
        self.clipped = [p for group in adam for p in group["params"]]
        self.heights = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.both]

    def step(self, rate: float) -> None:
        """Take one step at `rate` times the full learning rates and clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self.clipped, _CLIP)
        for optimizer, heights in zip(self.both, self.heights, strict=True):
            for group, height in zip(optimizer.param_groups, heights, strict=True):
                group["lr"] = height * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        """Return both optimizers' states."""
        return [optimizer.state_dict() for optimizer in self.both]

    def load_state_dict(self, states: list[dict]) -> None:
        """Restore what `state_dict` returned."""
        for optimizer, state in zip(self.both, states, strict=True):
            optimizer.load_state_dict(state)


@torch.no_grad()
def initialize_projector(model: TinyLlava, pictures: torch.Tensor, labels: torch.Tensor, rms: float = 0.5) -> None:
    """Set the projector so that visual tokens have the scale of words and spread in all directions.

    The tower's features share an offset many times their spread: whitening is folded into the first matrix. `rms` is
    that of the word embeddings at their start. The random rotation comes from torch's global generator.
    """
    features = model.tower(pictures).float().flatten(0, 1)
    objects = (labels[:, 0] > 0).flatten()
    features = torch.cat([features[objects], features[~objects][: int(objects.sum())]])
    mean = features.mean(0)
    values, vectors = torch.linalg.eigh((features - mean).T @ (features - mean) / len(features))
    whiten = (vectors / (values + 0.05 * values.mean()).sqrt()).T
    first, _, second = model.projector
    rotation = torch.linalg.qr(torch.randn(first.out_features, first.out_features))[0][:, : first.in_features]
    weight = 1.4 * rotation.to(whiten) @ whiten
    first.weight.copy_(weight)
    first.bias.copy_(-weight @ mean)
    torch.nn.init.orthogonal_(second.weight)
    second.bias.zero_()
    second.weight.mul_(rms / model.projector(features).var(0).mean().sqrt())
    second.bias.copy_(-model.projector(features).mean(0))
