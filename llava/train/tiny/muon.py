"""Muon: momentum whose update of a matrix is orthogonalised by a Newton–Schulz iteration (Jordan et al., 2024).

https://kellerjordan.github.io/posts/muon/. For hidden matrices only; everything else trains with AdamW.
"""

from collections.abc import Iterable
from itertools import groupby

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 4


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Return about U Vᵀ of every matrix U S Vᵀ: [N, m, n] with m ≤ n in, the same in bfloat16 out."""
    a, b, c = _COEFFICIENTS
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Muon over 2-D parameters; equal shapes are orthogonalised in one batch.

    Args:
        groups: parameter groups; `parts` (default 1) says how many matrices lie stacked in each parameter of a group,
            as q, k and v do: each is orthogonalised by itself.
        lr: step size; a part of m rows and n columns moves by lr · max(1, √(m/n)) · U Vᵀ.
        momentum: of the gradient's running mean.
        weight_decay: decoupled.

    """

    def __init__(self, groups: Iterable[dict], lr: float = 0.01, momentum: float = 0.95, weight_decay: float = 0.02):
        super().__init__(list(groups), dict(lr=lr, momentum=momentum, weight_decay=weight_decay, parts=1))

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        work = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                mean = state["momentum"]
                mean.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(mean, group["momentum"])
                for target, part in zip(p.chunk(group["parts"]), update.chunk(group["parts"]), strict=True):
                    tall = part.shape[0] > part.shape[1]
                    work.append((tuple(part.mT.shape if tall else part.shape), tall, target, part, group))
        work.sort(key=lambda item: item[0])
        for _, items in groupby(work, key=lambda item: item[0]):
            items = list(items)
            directions = orthogonalize(torch.stack([part.mT if tall else part for _, tall, _, part, _ in items]))
            for (_, tall, target, part, group), direction in zip(items, directions, strict=True):
                scale = max(1.0, part.shape[0] / part.shape[1]) ** 0.5
                target.mul_(1 - group["lr"] * group["weight_decay"])
                target.add_((direction.mT if tall else direction).to(target.dtype), alpha=-group["lr"] * scale)
