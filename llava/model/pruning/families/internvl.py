"""InternVL2.5 and InternVL3: tiles of 256 tokens and a thumbnail, each token an `<IMG_CONTEXT>` placeholder."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from ..vision import EncodedImages, Encoder, resized
from .placeholders import Placeholders


class InternVL(Placeholders):
    """`-hf` checkpoints and converted original ones; `<img>` and `</img>` around the tiles are text."""

    model_types = {"internvl": "InternVLForConditionalGeneration"}
    token_grid = "tiles"

    def encoder(self, model: nn.Module) -> Encoder | None:
        """Return the tower's last layer, with the patches that pixel shuffle puts into each token; None for another."""
        config, inner = model.config, model.model
        if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "default":
            return None
        layers = inner.vision_tower.encoder.layer
        images = partial(_tiles, inner.pixel_shuffle, config.downsample_ratio)

        def shrink(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
            side = min(size) * round(config.vision_config.patch_size[0] / config.downsample_ratio)
            small = resized(pixels[None], (side, side)).to(pixels)
            return inner.get_image_features(
                small, vision_feature_layer=-1, vision_feature_select_strategy="default"
            ).pooler_output[0]

        tower, projector = inner.vision_tower, inner.multi_modal_projector
        return Encoder(layers, len(layers) - 1, projector, True, images, patchwise=False, tower=tower, shrink=shrink)


def _tiles(shuffle, ratio: float, arguments: dict, output: torch.Tensor) -> EncodedImages:
    """Read the projector's output [tiles, V, D]: a tile is an image; shuffled places say which patches a token has."""
    tiles, count = output.shape[:2]
    side, rows = round((count / ratio**2) ** 0.5), round(count**0.5)
    places = torch.arange(side * side, dtype=torch.float32, device=output.device).view(1, side, side, 1)
    patches = shuffle(places, scale_factor=ratio).reshape(count, -1).long()
    every = patches + side * side * torch.arange(tiles, device=output.device)[:, None, None]
    return EncodedImages(list(output), [(rows, rows)] * tiles, every.flatten(0, 1))
