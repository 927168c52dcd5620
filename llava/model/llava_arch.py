"""Images into the prompt: each `<image>` marker of `input_ids` becomes that image's projected visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.anyres import merge_tiles
from llava.model.pruning.devices import execution_device


@dataclass(frozen=True)
class SplicedPrompt:
    """A batch as the decoder takes it: T is the longest prompt with its visual tokens, shorter ones are left padded.

    `inputs_embeds` `[B, T, D]`; `attention_mask` int64 `[B, T]`, 0 at padding; `position_ids` int64 `[B, T]`, from 0 at
    a sample's first token; `visual_mask` bool `[B, T]`, True at visual tokens.
    """

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    visual_mask: torch.Tensor


def flatten_images(images: torch.Tensor | Sequence[torch.Tensor] | None) -> list[torch.Tensor]:
    """Return every image `[3, H, W]` of a batch in order.

    `images`: `[N, 3, H, W]`, `[B, n, 3, H, W]`, or a list of `[3, H, W]` or `[n, 3, H, W]`.
    Raises `ValueError` for another shape, and for images that are no tensors.
    """
    flat: list[torch.Tensor] = []
    for image in [] if images is None else images:
        if not isinstance(image, torch.Tensor):
            raise ValueError(f"images of type {type(image).__name__}: expected tensors, as process_images makes them")
        if image.ndim not in (3, 4):
            raise ValueError(f"an image has shape {list(image.shape)}: expected [3, H, W] or [n, 3, H, W]")
        flat += [image] if image.ndim == 3 else list(image)
    return flat


def splice_images(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    features: Sequence[torch.Tensor],
    embed_tokens: nn.Module,
) -> SplicedPrompt:
    """Replace the markers of a batch by visual tokens and embed the rest.

    `input_ids` int64 `[B, L]` with `IMAGE_TOKEN_INDEX` markers; `attention_mask` `[B, L]`, 0 at padding (either side);
    `features`: `[V_i, D]` per marker, in batch order. The result is on the embedding's device, in its dtype.
    Raises `ValueError` for a marker count that differs from `len(features)`, ids outside the vocabulary, empty prompts
    or mis-shaped inputs.
    """
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids have shape {list(input_ids.shape)}: expected [B, L]")
    if attention_mask is not None and attention_mask.shape != input_ids.shape:
        shapes = f"{list(attention_mask.shape)} and {list(input_ids.shape)}"
        raise ValueError(f"attention_mask and input_ids have shapes {shapes}: expected the same")
    weight = embed_tokens.weight
    # lengths and ids are looked at on the host: one transfer here instead of a synchronisation per sample
    ids_on_host = input_ids.cpu()
    real = torch.ones_like(ids_on_host, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
    samples = [ids[keep] for ids, keep in zip(ids_on_host, real, strict=True)]
    check_marker_count(sum(int((ids == IMAGE_TOKEN_INDEX).sum()) for ids in samples), len(features))
    for feature in features:
        if feature.ndim != 2 or feature.shape[1] != weight.shape[1]:
            raise ValueError(f"image features have shape {list(feature.shape)}: expected [V, {weight.shape[1]}]")

    counts = iter([feature.shape[0] for feature in features])
    expanded = []
    for index, ids in enumerate(samples):
        if not len(ids):
            raise ValueError(f"sample {index} of the batch is empty: every prompt needs at least one token")
        repeats = [next(counts) if token == IMAGE_TOKEN_INDEX else 1 for token in ids.tolist()]
        expanded.append(ids.repeat_interleave(torch.tensor(repeats)))

    length = max(map(len, expanded))
    tokens = torch.zeros(len(expanded), length, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(expanded):
        tokens[row, length - len(ids) :] = ids
        mask[row, length - len(ids) :] = 1
    visual = tokens == IMAGE_TOKEN_INDEX
    tokens.masked_fill_(visual, 0)
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < weight.shape[0]:
        raise ValueError(
            f"input_ids hold {int(tokens.min())} to {int(tokens.max())}: expected 0 to {weight.shape[0] - 1}, "
            f"and {IMAGE_TOKEN_INDEX} for an image"
        )
    embeds = embed_tokens(tokens.to(execution_device(embed_tokens)))
    mask, visual = mask.to(embeds.device), visual.to(embeds.device)
    if features:
        visual_embeds = torch.cat([feature.to(embeds) for feature in features])
        embeds = embeds.masked_scatter(visual.unsqueeze(-1), visual_embeds)
    return SplicedPrompt(embeds, mask, (mask.cumsum(-1) - 1).clamp(min=0), visual)


def check_marker_count(markers: int, images: int) -> None:
    """Raise `ValueError` unless a batch has as many `<image>` markers as images."""
    if markers != images:
        raise ValueError(
            f"the prompts hold {markers} <image> markers, but {images} images were given: "
            f"give one image per marker, in batch order"
        )


def tiled_images(images: torch.Tensor | Sequence[torch.Tensor] | None) -> list[torch.Tensor]:
    """Return the tiles `[n, 3, H, W]` of every image of a batch; an image `[3, H, W]` is a thumbnail alone.

    Raises `ValueError` for another shape.
    """
    tiled = [image[None] if image.ndim == 3 else image for image in ([] if images is None else images)]
    if wrong := [list(image.shape) for image in tiled if image.ndim != 4]:
        raise ValueError(f"an image has shape {wrong[0]}: expected [3, H, W] or tiles [n, 3, H, W]")
    return tiled


class LlavaMetaForCausalLM:
    """What makes a causal LM a LLaVA: mixed into a class whose `self.model` has `vision_tower` and `mm_projector`."""

    model: Any
    config: Any

    def get_vision_tower(self) -> nn.Module | None:
        """Return the vision tower, None for a model without one."""
        return self.model.vision_tower

    @property
    def visual_tokens_per_image(self) -> int:
        """Visual tokens that an image becomes: the projector's count if it changes the tower's (0 without a tower)."""
        tower = self.model.vision_tower
        return 0 if tower is None else getattr(self.model.mm_projector, "num_tokens", tower.num_tokens)

    def encode_images(
        self, images: torch.Tensor | Sequence[torch.Tensor], image_sizes: Sequence[tuple[int, int]] | None = None
    ) -> torch.Tensor | list[torch.Tensor]:
        """Run tower and projector over images (shapes as in `flatten_images`); return `[N, V, D]`.

        AnyRes (LLaVA-1.6): an image is its tiles `[n, 3, H, W]`, `image_sizes` are the images' (width, height) before
        preprocessing, and the result is a list of `[V_i, D]`.

        Raises `ValueError` for a model without a tower, and for images that do not have the tower's size.
        """
        if self.model.vision_tower is None:
            raise ValueError("this model has no vision tower (mm_vision_tower is not set): it takes no images")
        if self.config.image_aspect_ratio == "anyres":
            return self._encode_tiles(tiled_images(images), image_sizes)
        flat = flatten_images(images)
        shapes = {tuple(image.shape) for image in flat}
        if len(shapes) != 1:
            raise ValueError(f"images of one call must have one shape, got {sorted(shapes)}: use process_images")
        return self._project(torch.stack(flat))

    def _project(self, pixels: torch.Tensor) -> torch.Tensor:
        features, projector = self.model.vision_tower(pixels), self.model.mm_projector
        return projector(features.to(execution_device(projector), self.dtype))

    def _encode_tiles(
        self, tiled: Sequence[torch.Tensor], image_sizes: Sequence[tuple[int, int]] | None
    ) -> list[torch.Tensor]:
        if image_sizes is None or len(image_sizes) != len(tiled):
            given = "no image_sizes" if image_sizes is None else f"{len(image_sizes)} image_sizes"
            raise ValueError(f"{given} for {len(tiled)} AnyRes images: give (width, height) of each")
        newline = getattr(self.model, "image_newline", None)
        side, pinpoints = self.model.vision_tower.config.image_size, self.config.image_grid_pinpoints
        features = self._project(torch.cat(list(tiled))).split([len(tiles) for tiles in tiled])
        sizes = [tuple(map(int, size)) for size in image_sizes]
        return [merge_tiles(one, size, pinpoints, side, newline) for one, size in zip(features, sizes, strict=True)]

    def prepare_prompt(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        images: torch.Tensor | Sequence[torch.Tensor] | None = None,
        image_features: Sequence[torch.Tensor] | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> SplicedPrompt:
        """Embed a batch of prompts with their images, given as pixels or as projected features (`splice_images`).

        Raises `ValueError` if both are given, for counts that differ from the markers' (before the tower runs), and for
        prompts longer than `config.tokenizer_model_max_length` with their visual tokens: nothing is cut off silently.
        """
        if images is not None and image_features is not None:
            raise ValueError("images and image_features were both given: give the pixels or the features")
        if image_features is None:
            flat = (tiled_images if self.config.image_aspect_ratio == "anyres" else flatten_images)(images)
            markers = input_ids == IMAGE_TOKEN_INDEX
            if attention_mask is not None and attention_mask.shape == markers.shape:
                markers = markers & attention_mask.bool()
            check_marker_count(int(markers.sum()), len(flat))
            image_features = list(self.encode_images(flat, image_sizes)) if flat else []
        prompt = splice_images(input_ids, attention_mask, image_features, self.get_input_embeddings())
        limit, length = self.config.tokenizer_model_max_length, prompt.attention_mask.shape[1]
        if limit is not None and length > limit:
            raise ValueError(
                f"a prompt has {length} tokens with its images, the model takes {limit} "
                f"(tokenizer_model_max_length): shorten the text or give fewer images"
            )
        return prompt
