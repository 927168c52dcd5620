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
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}

Features = torch.Tensor | tuple[torch.Tensor, ...]


class Encoded(NamedTuple):
    """An image or video without its pixels, and its features: [tiles, V / tiles, D], or one [V, D] alone.

    Models that take only pixels keep them, with `features` None: the vision part then runs in every prefill. `kind`:
    "image" or "video"; `deepstack`: features for the decoder's first layers, [V, D] each (Qwen3-VL).
    """

    picture: ProcessedImage
    features: Features | None
    kind: str = "image"
    deepstack: tuple[torch.Tensor, ...] = ()


class ProcessorInputs(Inputs):
    """Any processor that writes placeholders for images: LLaVA-NeXT, LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL, InternVL.

    A prompt is tokenised with one placeholder per image or video, which the ids of the preprocessed one replace. The
    result is that of the processor called with text, images and videos together, but an image of many questions is
    preprocessed and encoded once. Videos are taken where the processor has a part for them.
    """

    name = "chat template"

    def __init__(self, processor: ProcessorMixin, model_config: PreTrainedConfig):
        super().__init__(processor.tokenizer)
        self.processor = processor
        self.marker = processor.image_token_id
        if getattr(processor, "video_processor", None) is not None:
            self.video_marker = processor.tokenizer.convert_tokens_to_ids(processor.video_token)
        self.limit = model_config.get_text_config().max_position_embeddings
        self._markers = [one for one in (self.marker, self.video_marker) if one is not None]
        names = ("image_token", "video_token", "start_image_token", "end_image_token")
        tokens = (getattr(processor, name, None) for name in names)
        self.reserved = tuple(dict.fromkeys(token for token in tokens if token))
        self._has_types = TOKEN_TYPES in processor(text=["a"], return_tensors="pt")

    def prompt(self, turns: Sequence[Turn]) -> str:
        """Return the conversation written by the processor's chat template, one placeholder per image or video."""
        return self.processor.apply_chat_template(self.messages(turns), add_generation_prompt=True, tokenize=False)

    def transcript(self, turns: Sequence[Turn]) -> str:
        """Return the conversation written by the processor's chat template, its last answer included."""
        return self.processor.apply_chat_template(self.messages(turns), tokenize=False)

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
            made = self.processor(images=[to_rgb(image)], text=[self.processor.image_token], **shared)
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
            same = [one for one in media if one.kind == kind]
            output = BaseModelOutputWithPooling(pooler_output=_joined([one.features for one in same]))
            if same[0].deepstack:
                output.deepstack_features = list(zip(*(one.deepstack for one in same), strict=True))
            batch.setdefault(ENCODED, {})[kind] = output
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
        begun = self.tokenizer.bos_token is not None and prompt.startswith(self.tokenizer.bos_token)
        return self.tokenizer(prompt, add_special_tokens=not begun).input_ids


def _arrays(
    pictures: Sequence[ProcessedImage], device: torch.device, dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """Return the arrays of pictures, joined, on a device; pixels in `dtype` (None: their own)."""
    names = dict.fromkeys(chain.from_iterable(picture.arrays for picture in pictures))
    arrays = {name: [one.arrays[name] for one in pictures if name in one.arrays] for name in names}
    return {
        name: torch.from_numpy(_stack(parts)).to(device, dtype if name in _PIXELS.values() else None)
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
    kinds = ["video" if _PIXELS["video"] in picture.arrays else "image" for picture in pictures]
    images = [picture for picture, kind in zip(pictures, kinds, strict=True) if kind == "image"]
    features = iter(_features(images, model, "image") if images else ())
    found = []
    for picture, kind in zip(pictures, kinds, strict=True):
        part, deepstack = next(features) if kind == "image" else _features([picture], model, kind)[0]
        arrays = {name: array for name, array in picture.arrays.items() if name != _PIXELS[kind]}
        found.append(Encoded(ProcessedImage(arrays, picture.ids), part, kind, deepstack))
    return found


def _features(
    pictures: Sequence[ProcessedImage], model: Any, kind: str
) -> list[tuple[Features, tuple[torch.Tensor, ...]]]:
    """Run the vision part over media of one kind; return each one's features, and those of DeepStack."""
    encode = getattr(model.base_model, f"get_{kind}_features")
    known = inspect.signature(encode).parameters
    given = {
        name: value for name, value in _arrays(pictures, execution_device(model), model.dtype).items() if name in known
    }
    with align_module_device(model.base_model):  # its own image_newline, where accelerate offloads it
        output = encode(**given, return_dict=True)
    features = output.pooler_output
    if isinstance(features, torch.Tensor):
        parts = features.split([len(picture.arrays[_PIXELS[kind]]) for picture in pictures])
    else:
        parts = [(image,) for image in features]
    deepstack = list(zip(*(getattr(output, "deepstack_features", None) or ()), strict=True)) or [()] * len(pictures)
    return list(zip(parts, deepstack, strict=True))


def _joined(features: Sequence[Features]) -> Features | list[torch.Tensor]:
    """Join the features of several media as models take them; videos of different lengths one after the other."""
    if not isinstance(features[0], torch.Tensor):
        return list(chain(*features))
    if features[0].ndim == 3 and len({one.shape[1] for one in features}) > 1:
        return torch.cat([one.flatten(0, 1) for one in features])[None]
    return torch.cat(features)


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Join along the first axis; images of fewer tiles (the second axis, AnyRes) are filled up with zeros."""
    tiles = max(array.shape[1] if array.ndim > 1 else 0 for array in arrays)
    filled = []
    for array in arrays:
        missing = tiles - array.shape[1] if array.ndim > 1 else 0
        widths = [(0, missing if axis == 1 else 0) for axis in range(array.ndim)]
        filled.append(np.pad(array, widths) if missing else array)
    return np.concatenate(filled)
