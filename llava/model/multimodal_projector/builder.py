"""The projector from the vision tower's width to the decoder's: `linear` or `mlp{n}x_gelu`."""

from __future__ import annotations

import re
from typing import Any

from torch import nn


def build_vision_projector(config: Any) -> nn.Module:
    """Build the projector that `config.mm_projector_type` names, `[…, mm_hidden_size] → […, hidden_size]`.

    `linear` is one `nn.Linear`; `mlp{n}x_gelu` is n of them with a GELU between, in an `nn.Sequential` (so that the
    state dict has LLaVA's names). Raises `ValueError` for another type.
    """
    kind, width, hidden = config.mm_projector_type, config.mm_hidden_size, config.hidden_size
    if kind == "linear":
        return nn.Linear(width, hidden)
    match = re.fullmatch(r"mlp([1-9]\d*)x_gelu", str(kind))
    if match is None:
        raise ValueError(f"mm_projector_type {kind!r} is not supported: expected 'linear' or 'mlp{{n}}x_gelu'")
    layers: list[nn.Module] = [nn.Linear(width, hidden)]
    for _ in range(int(match[1]) - 1):
        layers += [nn.GELU(), nn.Linear(hidden, hidden)]
    return nn.Sequential(*layers)
