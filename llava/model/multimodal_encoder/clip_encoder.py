"""The CLIP vision tower: pixels to patch features of one hidden layer, as LLaVA selects them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.model.pruning.devices import execution_device


class CLIPVisionTower(nn.Module):
    """transformers' `CLIPVisionModel` and the choice of layer (`mm_vision_select_layer`) and tokens.

    `mm_vision_select_feature`: "patch" drops the class token, "cls_patch" keeps it.
    Raises `ValueError` for another feature or a layer that the tower does not have.
    """

    def __init__(self, config: Any, vision_config: CLIPVisionConfig):
        super().__init__()
        self.select_layer = config.mm_vision_select_layer
        self.select_feature = config.mm_vision_select_feature
        if self.select_feature not in ("patch", "cls_patch"):
            raise ValueError(f"mm_vision_select_feature {self.select_feature!r}: expected 'patch' or 'cls_patch'")
        states = vision_config.num_hidden_layers + 1
        if not -states <= self.select_layer < states:
            raise ValueError(f"mm_vision_select_layer {self.select_layer} is not one of the tower's {states} states")
        self.layers_read = self.select_layer % states
        self.vision_tower = CLIPVisionModel(vision_config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Take normalised pixels `[N, 3, S, S]`; return features `[N, num_tokens, hidden_size]` in the tower's dtype.

        Raises `ValueError` if the images do not have the tower's size S.
        """
        size = self.config.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ValueError(f"images have shape {list(images.shape)}, the vision tower takes [N, 3, {size}, {size}]")
        # not through output_hidden_states: transformers captures a tower twice that lies inside a captured decoder
        tower = self.vision_tower
        features = tower.pre_layrnorm(tower.embeddings(images.to(self.device, self.dtype)))
        for layer in tower.encoder.layers[: self.layers_read]:
            features = layer(features, attention_mask=None)
        return features[:, 1:] if self.select_feature == "patch" else features

    @property
    def config(self) -> CLIPVisionConfig:
        """The tower's own configuration."""
        return self.vision_tower.config

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.vision_tower.dtype

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return execution_device(self.vision_tower)

    @property
    def hidden_size(self) -> int:
        """Width of a feature."""
        return self.config.hidden_size

    @property
    def num_patches_per_side(self) -> int:
        """Patches along one side of the image."""
        return self.config.image_size // self.config.patch_size

    @property
    def num_tokens(self) -> int:
        """Visual tokens of one image."""
        return self.num_patches_per_side**2 + (self.select_feature == "cls_patch")
