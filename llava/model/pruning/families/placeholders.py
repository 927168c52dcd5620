"""Families whose prompts hold one placeholder id per visual token: what transformers' processors write."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ..grid import box, grid_of, runs_of
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

    def grid(self, model: nn.Module, inputs: dict[str, Any]) -> np.ndarray:
        """Put what `cells` knows of each image and video at its placeholders, in the order of the batch.

        Raises:
            ValueError: `cells` explains another number of tokens than the batch has.

        """
        ids = inputs["input_ids"].cpu().numpy()
        parts = []
        for name in self.placeholders:
            there, kind = ids == getattr(model.config, name, None), name.removesuffix("_token_id")
            parts.append((there, (self.cells(model, inputs, kind) if there.any() else None) or runs_of(there)))
        return grid_of(parts)

    def cells(self, model: nn.Module, inputs: dict[str, Any], kind: str) -> list[np.ndarray] | None:
        """Return (frame, row, column) of the visual tokens of each `kind` ("image" or "video"): int [V, 3] each.

        By default from the grids of patches that Qwen2-VL and its successors are given (a video's first number counts
        pairs of frames). None where they are not known: each run of placeholders is then taken for one image.
        """
        patches = inputs.get(f"{kind}_grid_thw")
        merge = getattr(getattr(model.config, "vision_config", None), "spatial_merge_size", None)
        if patches is None or merge is None:
            return None
        return [box(t, h // merge, w // merge) for t, h, w in patches.tolist()]

    def videos_of(
        self, model: nn.Module, inputs: dict[str, Any], frame: np.ndarray, after: int = 0
    ) -> list[np.ndarray]:
        """Return the `cells` of videos whose frames all have the tokens `frame` (rows and columns, int [P, 2]).

        As many frames as their pixels [N, T, …] or features [N, V, D] say, else as each run of placeholders has tokens
        for; `after` tokens of no frame follow each video.
        """
        pixels, encoded = media_of(inputs, "video")
        features = None if encoded is None else encoded.pooler_output
        if pixels is not None:
            counts = [pixels.shape[1]] * pixels.shape[0]
        elif isinstance(features, torch.Tensor) and features.ndim == 3 and features.shape[0] > 1:
            counts = [(features.shape[1] - after) // len(frame)] * features.shape[0]
        else:
            there = inputs["input_ids"].cpu().numpy() == model.config.video_token_id
            counts = [(len(run) - after) // len(frame) for run in runs_of(there)]
        none = np.full((after, 3), -1)
        return [
            np.concatenate([np.column_stack([np.repeat(np.arange(n), len(frame)), np.tile(frame, (n, 1))]), none])
            for n in counts
        ]

    def holds_video(self, inputs: dict[str, Any]) -> bool:
        """Whether a video's pixels or features are among the inputs."""
        return any(part is not None for part in media_of(inputs, "video"))


def media_of(inputs: dict[str, Any], kind: str) -> list[Any]:
    """Return the pixels and the features of one kind of media, None for what is not there."""
    pixels = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
    return [inputs.get(pixels), (inputs.get("mm_encoder_outputs") or {}).get(kind)]


def _holds_images(inputs: dict[str, Any]) -> bool:
    """Whether pixels came along, or the features that transformers' `generate` makes of them beforehand."""
    pixels = (value for name, value in inputs.items() if "pixel_values" in name)
    return any(part is not None for part in (*pixels, *(inputs.get("mm_encoder_outputs") or {}).values()))
