"""LLaVA-1.5 as transformers' `LlavaForConditionalGeneration`: visual tokens are the image placeholders."""

from __future__ import annotations

from torch import nn

from ..vision import Encoder, layer_encoder
from .placeholders import Placeholders


class LlavaHF(Placeholders):
    """`llava-hf/llava-1.5-*-hf`."""

    model_types = {"llava": "LlavaForConditionalGeneration"}
    token_grid = "square"

    def encoder(self, model: nn.Module) -> Encoder | None:
        """Return the CLIP or SigLIP tower's selected layer and the projector.

        None where several layers are projected, for another tower, and where a class token is a visual token.
        """
        layer, kind = model.config.vision_feature_layer, model.config.vision_config.model_type
        class_token = kind == "clip_vision_model"
        whole = model.config.vision_feature_select_strategy == "full"
        if (
            not isinstance(layer, int)
            or kind not in ("clip_vision_model", "siglip_vision_model")
            or whole == class_token
        ):
            return None
        return layer_encoder(model.model.vision_tower, layer, model.model.multi_modal_projector, class_token)
