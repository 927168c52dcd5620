"""The projector from the vision tower's width to the decoder's: `linear`, `mlp{n}x_gelu` or `ldpnetv2`."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from .ldpnetv2 import LDPNetV2Projector


def build_vision_projector(config: Any) -> nn.Module:
    """Build the projector that `config.mm_projector_type` names, `[N, V, mm_hidden_size] → [N, V', hidden_size]`.

    `linear` is one `nn.Linear`; `mlp{n}x_gelu` is n of them with a GELU between, in an `nn.Sequential` (so that the
    state dict has LLaVA's names); `ldpnetv2` is MobileVLM V2's. A projector that changes the number of tokens says how
    many it makes of an image, `num_tokens`. Raises `ValueError` for another type, or a class token before `ldpnetv2`.
    """
    kind, width, hidden = config.mm_projector_type, config.mm_hidden_size, config.hidden_size
    if kind == "linear":
        return nn.Linear(width, hidden)
    if kind == "ldpnetv2":
        if config.mm_vision_select_feature != "patch":
            raise ValueError(
                f"mm_projector_type 'ldpnetv2' pools a grid of patches: expected mm_vision_select_feature 'patch', "
                f"not {config.mm_vision_select_feature!r}"
            )
        return LDPNetV2Projector(width, hidden)
    match = re.fullmatch(r"mlp([1-9]\d*)x_gelu", str(kind))
    if match is None:
        expected = "'linear', 'mlp{n}x_gelu' or 'ldpnetv2'"
        raise ValueError(f"mm_projector_type {kind!r} is not supported: expected {expected}")
    layers: list[nn.Module] = [nn.Linear(width, hidden)]
    for _ in range(int(match[1]) - 1):
        layers += [nn.GELU(), nn.Linear(hidden, hidden)]
    return nn.Sequential(*layers)
