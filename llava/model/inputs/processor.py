"""Prompts of transformers' families: the processor's chat template, its image preprocessing, its placeholders."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import align_module_device
from PIL import Image
from transformers import PreTrainedConfig, ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava.constants import IGNORE_INDEX
from llava.model.images import to_rgb
from llava.model.pruning.devices import execution_device
from llava.model.videos import Video

from .base import ImageFeatures, Inputs, ProcessedImage, Turn, left_padded

TOKEN_TYPES = "mm_token_type_ids"
ENCODED = "mm_encoder_outputs"
_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids")
_PIXELS = "pixel_values"
_VIDEO_PIXELS = "pixel_values_videos"

Features = torch.Tensor | tuple[torch.Tensor, ...]


class Encoded(NamedTuple):
    """An image or video without its pixels, and its features: [tiles, V / tiles, D], or one [V, D] alone.

    Models that take only pixels keep them, with `features` None: the vision part then runs in every prefill. `kind`:
    "image" or "video". `deepstack`: features for the decoder's first layers, [V, D] each (Qwen3-VL); `indicators`: what
    Ovis2 puts around any image, [n, D].
    """

    picture: ProcessedImage
    features: Features | None
    kind: str = "image"
    deepstack: tuple[torch.Tensor, ...] = ()
    indicators: torch.Tensor | None = None


class ProcessorInputs(Inputs):
    """Any processor that writes one placeholder per visual token, with or without text around them.

    A prompt is tokenised with one marker per image or video, which the ids of the preprocessed one replace. The result
    is that of the processor called with text, images and videos together, but an image of many questions is
    preprocessed and encoded once. Videos are taken where the processor has a part for them.
    """

    name = "chat template"

    def __init__(self, processor: ProcessorMixin, model_config: PreTrainedConfig):
        super().__init__(processor.tokenizer)
        self.processor = processor
        self.marker = model_config.image_token_id
        # what chat templates write for an image; most write the visual token itself, once
        self._written = getattr(processor, "image_placeholder_token", processor.image_token)
        self._marked = processor.tokenizer.convert_ids_to_tokens(self.marker)
        if getattr(processor, "video_processor", None) is not None:
            self.video_marker = processor.tokenizer.convert_tokens_to_ids(processor.video_token)
        self.limit = model_config.get_text_config().max_position_embeddings
        self._markers = [one for one in (self.marker, self.video_marker) if one is not None]
        names = ("video_token", "start_image_token", "end_image_token")
        tokens = (self._written, self._marked, *(getattr(processor, name, None) for name in names))
        self.reserved = tuple(dict.fromkeys(token for token in tokens if token))
        try:
            self._has_types = TOKEN_TYPES in processor(text=["a"], return_tensors="pt")
        except ValueError:  # one that takes no prompt without an image
            self._has_types = TOKEN_TYPES in processor.model_input_names

    def prompt(self, turns: Sequence[Turn]) -> str:
        """Return the conversation written by the processor's chat template, one placeholder per image or video."""
        return self._written_by_template(turns, add_generation_prompt=True)

    def transcript(self, turns: Sequence[Turn]) -> str:
        """Return the conversation written by the processor's chat template, its last answer included."""
        return self._written_by_template(turns)

    def _written_by_template(self, turns: Sequence[Turn], **how: Any) -> str:
        # of the base class: SmolVLM's own asks its video part for defaults, which is not there without torchvision
        return ProcessorMixin.apply_chat_template(self.processor, self.messages(turns), tokenize=False, **how)

    def messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """Return the conversation as chat templates take it."""
        messages = []
        for turn in turns:
            content = [{"type": "image"}] * turn.images + [{"type": "video"}] * turn.videos
            content.append({"type": "text", "text": turn.question})
            messages.append({"role": "user", "content": content})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        return messages

    def prepare(self, image: Image.Image | Video) -> ProcessedImage:
        """Run the processor over one image or video and its placeholder."""
        shared = {"add_special_tokens": False, "return_tensors": "pt"}
        if isinstance(image, Video):
            about = {"total_num_frames": image.total, "fps": image.fps, "frames_indices": list(image.indices)}
            made = self.processor(
                videos=[image.frames],
                text=[self.processor.video_token],
                video_metadata=[about | {"duration": image.total / image.fps}],
                do_sample_frames=False,
                **shared,
            )
        else:
            made = self.processor(images=[to_rgb(image)], text=[self._written], **shared)
        arrays = {name: value.numpy() for name, value in made.items() if name not in _PER_TOKEN}
        return ProcessedImage(arrays, made["input_ids"][0].tolist())

    def encode_images(self, model: Any, pictures: Sequence[ProcessedImage]) -> list[ImageFeatures]:
        """Run the vision part over all pictures together: `content` is `Encoded`."""
        encoded = _encode(pictures, model) if takes_features(model) else [Encoded(one, None) for one in pictures]
        visual = [np.flatnonzero(np.isin(one.picture.ids, self._markers)) for one in encoded]
        return [
            ImageFeatures(len(one.picture.ids), len(places), one, int(places[0]))
            for one, places in zip(encoded, visual, strict=True)
        ]

    def collate(
        self, rows: Sequence[Sequence[int]], seen: Sequence[Sequence[ImageFeatures]], model: Any
    ) -> dict[str, Any]:
        """Return what the processor returns for the whole batch, left padded; features in place of its pixels."""
        pictures = [[image.content.picture for image in images] for images in seen]
        batch = {name: value.to(execution_device(model)) for name, value in self._text(rows, pictures).items()}
        batch |= _arrays(list(chain.from_iterable(pictures)), execution_device(model), model.dtype)
        media = [image.content for images in seen for image in images if image.content.features is not None]
        for kind in dict.fromkeys(one.kind for one in media):
            batch.setdefault(ENCODED, {})[kind] = _output([one for one in media if one.kind == kind])
        return batch

    def training_batch(
        self, rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], seen: Sequence[Sequence[ProcessedImage]]
    ) -> dict[str, Any]:
        """Return what the processor returns for the whole batch, left padded, and labels alike."""
        spread = []
        for row, own, pictures in zip(rows, labels, seen, strict=True):
            following = iter(pictures)
            repeats = [len(next(following).ids) if token in self._markers else 1 for token in row]
            ignored = [IGNORE_INDEX if one in self._markers else label for one, label in zip(row, own, strict=True)]
            spread.append(np.repeat(ignored, repeats))
        batch = self._text(rows, seen) | {"labels": left_padded(spread, IGNORE_INDEX)[0]}
        return batch | _arrays(list(chain.from_iterable(seen)), torch.device("cpu"), None)

    def _text(self, rows: Sequence[Sequence[int]], seen: Sequence[Sequence[ProcessedImage]]) -> dict[str, torch.Tensor]:
        """Return ids, mask and, where the family has them, token types of a left-padded batch."""
        full = [self._expand(row, shown) for row, shown in zip(rows, seen, strict=True)]
        ids, mask = left_padded([ids for ids, _ in full], self.tokenizer.pad_token_id)
        batch = {"input_ids": ids, "attention_mask": mask}
        if self._has_types:
            batch[TOKEN_TYPES], _ = left_padded([types for _, types in full], 0)
        return batch

    def new_tokens(self, output: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        """Return what follows the prompt."""
        return output[:, batch["input_ids"].shape[1] :]

    def _expand(self, row: Sequence[int], pictures: Sequence[ProcessedImage]) -> tuple[list[int], list[int]]:
        """Replace each image's or video's placeholder by its own ids; return ids and token types."""
        ids, types, following = [], [], iter(pictures)
        for token in row:
            if token not in self._markers:
                ids.append(token)
                types.append(0)
                continue
            picture = next(following)
            ids += picture.ids
            types += picture.arrays[TOKEN_TYPES][0].tolist() if self._has_types else [0] * len(picture.ids)
        return ids, types

    def tokenize(self, prompt: str) -> list[int]:
        """Return the row of a prompt's text."""
        prompt = prompt.replace(self._written, self._marked)
        begun = self.tokenizer.bos_token is not None and prompt.startswith(self.tokenizer.bos_token)
        return self.tokenizer(prompt, add_special_tokens=not begun).input_ids


def _arrays(
    pictures: Sequence[ProcessedImage], device: torch.device, dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Return the arrays of pictures, joined, on a device; pixels in `dtype` (None: their own)."""
    names = dict.fromkeys(chain.from_iterable(picture.arrays for picture in pictures))
    arrays = {name: [one.arrays[name] for one in pictures if name in one.arrays] for name in names}
    return {
        name: torch.from_numpy(_stack(parts)).to(device, dtype if _PIXELS in name else None)
        for name, parts in arrays.items()
        if name != TOKEN_TYPES
    }


def takes_features(model: Any) -> bool:
    """Whether `forward` takes features in place of pixels (transformers' newer releases)."""
    return ENCODED in inspect.signature(model.forward).parameters


@torch.no_grad()
def _encode(pictures: Sequence[ProcessedImage], model: Any) -> list[Encoded]:
    """Return each picture with its features, as the model's `forward` takes them in place of pixels.

    Images run together, videos one by one: they may be long, and of different lengths.
    """
    kinds = ["video" if _VIDEO_PIXELS in picture.arrays else "image" for picture in pictures]
    images = [picture for picture, kind in zip(pictures, kinds, strict=True) if kind == "image"]
    encoded = iter(_features(images, model, "image") if images else ())
    return [
        next(encoded) if kind == "image" else _features([picture], model, kind)[0]
        for picture, kind in zip(pictures, kinds, strict=True)
    ]


def _features(pictures: Sequence[ProcessedImage], model: Any, kind: str) -> list[Encoded]:
    """Run the vision part over media of one kind.

    Raises `ValueError` if it makes another number of visual tokens than the processor wrote placeholders.
    """
    encode = getattr(model.base_model, f"get_{kind}_features")
    known = inspect.signature(encode).parameters
    arrays = _arrays(pictures, execution_device(model), model.dtype)
    given = {name: value for name, value in arrays.items() if name in known}
    with align_module_device(model.base_model):  # its own image_newline, where accelerate offloads it
        output = encode(**given, return_dict=True)
    features, token = output.pooler_output, getattr(model.config, f"{kind}_token_id")
    tokens = [len(one.arrays.get("video_compression_mask", ())) or one.ids.count(token) for one in pictures]
    made = [one.shape[:-1].numel() for one in features]
    if isinstance(features, torch.Tensor):
        fits = sum(tokens) == sum(made) and not any(count % made[0] for count in tokens)
        parts = features.split([count // made[0] for count in tokens]) if fits else ()
    else:
        fits, parts = tokens == made, [(one,) for one in features]
    if not fits:
        raise ValueError(
            f"the processor wrote {sum(tokens)} visual tokens for {len(pictures)} {kind}s, the vision part of this "
            f"{type(model).__name__} made {sum(made)}: the sizes of images, patches or tiles in their settings differ"
        )
    deepstack = list(zip(*(getattr(output, "deepstack_features", None) or ()), strict=True)) or [()] * len(pictures)
    indicators = getattr(output, "visual_indicator_features", None)
    found = []
    for picture, part, further in zip(pictures, parts, deepstack, strict=True):
        arrays = {name: array for name, array in picture.arrays.items() if "pixel" not in name}
        found.append(Encoded(ProcessedImage(arrays, picture.ids), part, kind, tuple(further), indicators))
    return found


def _output(media: Sequence[Encoded]) -> BaseModelOutputWithPooling:
    """Return what the vision part would return for media of one kind."""
    output = BaseModelOutputWithPooling(pooler_output=_joined([one.features for one in media]))
    if media[0].deepstack:
        output.deepstack_features = [list(layer) for layer in zip(*(one.deepstack for one in media), strict=True)]
    if media[0].indicators is not None:
        output.visual_indicator_features = media[0].indicators
    return output


def _joined(features: Sequence[Features]) -> Features | list[torch.Tensor]:
    """Join the features of several media as models take them; videos of different lengths one after the other."""
    if not isinstance(features[0], torch.Tensor):
        return list(chain(*features))
    if features[0].ndim == 3 and len({one.shape[1] for one in features}) > 1:
        return torch.cat([one.flatten(0, 1) for one in features])[None]
    return torch.cat(features)


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Join along the first axis; images of fewer tiles, or smaller ones, are filled up with zeros at the end."""
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    widths = [
        [(0, 0), *((0, most - own) for most, own in zip(shape, array.shape[1:], strict=True))] for array in arrays
    ]
    filled = (
        np.pad(array, width) if any(map(any, width)) else array for array, width in zip(arrays, widths, strict=True)
    )
    return np.concatenate(list(filled))
