"""Gemma 3: layers with a sliding window between full ones, two rotary tables, images whose tokens read both ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import get_block_sequence_ids_for_mask

from .placeholders import Placeholders


class Gemma3(Placeholders):
    """`google/gemma-3-*`: 256 tokens per image (and per crop of it, with pan and scan); what frames them is text."""

    model_types = {"gemma3": "Gemma3ForConditionalGeneration"}
    token_grid = "grid"
    makes_masks = True

    def blocks(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Each image is a block, as the processor's `token_type_ids` say."""
        types = inputs.get("token_type_ids")
        return None if types is None else get_block_sequence_ids_for_mask(types)
