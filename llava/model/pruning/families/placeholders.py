"""Families whose prompts hold one placeholder id per visual token: what transformers' processors write."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from .base import Family


class Placeholders(Family):
    """A transformers model whose base model sees the token ids and calls the decoder.

    placeholders:
        config attributes that name the ids of visual tokens, of which a config may lack some
    """

    placeholders: ClassVar[tuple[str, ...]] = ("image_token_id", "video_token_id")

    def decoder(self, model: nn.Module) -> nn.Module:
        """Return the text model."""
        return model.get_decoder()

    def entry(self, model: nn.Module) -> nn.Module:
        """Return the multimodal model under the language-model head."""
        return model.base_model

    def visual_mask(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Placeholders are visual, whatever part of an image they stand for; None where embeddings replace ids.

        None, too, for tokens after a cached prompt that come without images: the model itself wrote the placeholder.
        """
        ids, cache = inputs.get("input_ids"), inputs.get("past_key_values")
        if ids is None or (cache is not None and cache.get_seq_length() and not _holds_images(inputs)):
            return None
        names = {name: getattr(model.config, name, None) for name in self.placeholders}
        names = {name: value for name, value in names.items() if value is not None}
        visual = torch.zeros_like(ids, dtype=torch.bool)
        for placeholder in names.values():
            visual |= ids == placeholder
        if _holds_images(inputs) and not visual.any():
            expected = ", ".join(f"{name} {value}" for name, value in names.items())
            raise ValueError(
                f"images were given, but no placeholder ({expected}) is among the input_ids, so that nothing would be "
                f"pruned; build the prompt with the processor of this {type(model).__name__}"
            )
        return visual


def _holds_images(inputs: dict[str, Any]) -> bool:
    """Whether pixels came along, or the features that transformers' `generate` makes of them beforehand."""
    pixels = (value for name, value in inputs.items() if "pixel_values" in name)
    return any(part is not None for part in (*pixels, *(inputs.get("mm_encoder_outputs") or {}).values()))
