"""PaliGemma 1 and 2: a prefix of image and question whose tokens all read each other, before a causal answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..layers import LayerKind
from .placeholders import Placeholders


class PaliGemma(Placeholders):
    """`google/paligemma*`; PaliGemma 2 stands on Gemma 2, with soft caps and sliding windows."""

    model_types = {"paligemma": "PaliGemmaForConditionalGeneration"}
    token_grid = "grid"
    makes_masks = True
    no_reuse = "reads image and question as one prefix, whose tokens all depend on each other"

    def layers(self, decoder: nn.Module) -> tuple[LayerKind, ...]:
        """Tokens of the prefix read each other through a sliding window, too."""
        return tuple(replace(kind, far_blocks=True) for kind in super().layers(decoder))

    def blocks(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        """The prefix is one block: where the processor's `token_type_ids` are 0."""
        types = inputs.get("token_type_ids")
        return None if types is None else torch.where(types == 0, 0, -1)
