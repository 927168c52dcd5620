"""LLaVA-1.5 as transformers' `LlavaForConditionalGeneration`: visual tokens are the image placeholders."""

from __future__ import annotations

from torch import nn

from ..vision import Encoder, clip_encoder
from .placeholders import Placeholders


class LlavaHF(Placeholders):
    """`llava-hf/llava-1.5-*-hf`."""

    model_types = {"llava": "LlavaForConditionalGeneration"}
    token_grid = "square"

    def encoder(self, model: nn.Module) -> Encoder | None:
        """Return the CLIP tower's selected layer and the projector; None where several layers are projected."""
        layer = model.config.vision_feature_layer
        if not isinstance(layer, int):
            return None
        return clip_encoder(model.model.vision_tower, layer, model.model.multi_modal_projector)
