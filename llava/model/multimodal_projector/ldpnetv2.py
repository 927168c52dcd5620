"""The lightweight downsample projector of MobileVLM V2 (LDPv2): 576 patch features become 144 visual tokens.

arXiv 2402.03766: a two-layer MLP, average pooling (2×2 on the published 24×24 grid), and a positional encoding
generator, which is a 3×3 depthwise convolution beside a skip connection.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

SIDE = 12
"""Visual tokens along one side of an image: released checkpoints pool to this grid whatever the tower's is."""


class LDPNetV2Projector(nn.Module):
    """`[N, S², width] → [N, 144, hidden]`; patches and tokens in row-major order.

    The state dict has the released names: `mlp.mlp.0`, `mlp.mlp.2` and `peg.peg.0`, each with weight and bias.
    """

    num_tokens = SIDE * SIDE

    def __init__(self, width: int, hidden: int):
        super().__init__()
        transform = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        position = nn.Sequential(nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden))
        self.mlp = nn.ModuleDict({"mlp": transform})
        self.peg = nn.ModuleDict({"peg": position})

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project patch features; raises `ValueError` if their number is not a square (a class token among them)."""
        side = math.isqrt(features.shape[-2])
        if side * side != features.shape[-2]:
            raise ValueError(f"ldpnetv2 got {features.shape[-2]} features an image: expected a square grid of patches")
        grid = self.mlp["mlp"](features).mT.unflatten(-1, (side, side))  # [N, D, S, S]
        pooled = F.adaptive_avg_pool2d(grid, SIDE)  # [N, D, 12, 12]
        return (pooled + self.peg["peg"](pooled)).flatten(2).mT  # [N, 144, D]
