"""States of the image encoder for methods that read it (VisionZip, VisPruner, …), recorded by hooks during a session.

Queries and keys are recorded where a tower's layer hands them to its attention function, so that any tower of
transformers can be read. Images may be encoded long before the prompt that shows them is read (an evaluation encodes
each image once). So every image's states are remembered with a fingerprint, three of its visual tokens, and found
again by the visual tokens that enter the decoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .packed import PackedTokens, upload
from .probes import LayerStates, Probe

NAME = "visipruner-encoder"
REMEMBERED = 128
"""Images whose states are held, and more in a larger batch: about 1.2 MB each for CLIP-L/336 in half precision."""
CHUNK = 256
"""Rows of an encoder's attention that are formed at a time."""
COMPARED = 8
"""Numbers of a visual token that are compared to recognise an image; three tokens of each."""


@dataclass(frozen=True)
class EncoderReading:
    """What to measure in one encoder layer; a visual token made of several patches has the mean of theirs.

    what:
        `class` the attention of the class token to each patch, mean over heads (of a tower without a class token, as
        `all`) · `all` the attention that each patch receives, summed over rows, mean over heads · `joint` that of the
        class token with the queries and keys of all heads as one · `keys` mean over heads · `joint keys` of all heads ·
        `pixels` nothing: the picture is held, so that `EncoderStates.shrink` can encode it again
    layer:
        the one whose output is `projected`, the `next` one, or as a share of the encoder's depth: 0.5 of 24 is the 12th
    """

    what: Literal["class", "all", "joint", "keys", "joint keys", "pixels"]
    layer: Literal["projected", "next"] | float = "projected"


class EncodedImages(NamedTuple):
    """The output of a projector: visual tokens [V, D] and (rows, columns) of each image, and the patches of each token.

    patches: int [ΣV, patches per token], counted over all images in the encoder's order; None where each has one
    """

    tokens: Sequence[torch.Tensor]
    grids: list[tuple[int, int]]
    patches: torch.Tensor | None = None


def square_images(arguments: dict[str, Any], output: torch.Tensor) -> EncodedImages:
    """Read a projector's output [N, P, D]: N square images, one visual token per patch."""
    side = round(output.shape[1] ** 0.5)
    return EncodedImages(list(output), [(side, output.shape[1] // side)] * len(output))


@dataclass(frozen=True)
class Encoder:
    """Where a family keeps its image encoder.

    layers, layer:
        the encoder's layers, and the index of the one whose output the projector reads
    projector:
        the module that returns the visual tokens
    class_token:
        whether the encoder's first token is a class token
    images:
        maps the projector's keyword arguments and output to `EncodedImages`
    patchwise:
        whether each visual token is made of one patch, so that features [n, Dv] can be mixed and then projected
    tower, pictures:
        the module that takes the pixels, and what splits its keyword arguments into those of each image
    shrink:
        maps such a picture and (rows, columns) of visual tokens to the tokens [rows · columns, D] of the picture made
        smaller; None where the tower takes one size only
    """

    layers: Sequence[nn.Module]
    layer: int
    projector: nn.Module
    class_token: bool
    images: Callable[[dict[str, Any], Any], EncodedImages] = square_images
    patchwise: bool = True
    tower: nn.Module | None = None
    pictures: Callable[[dict[str, Any]], Sequence[Any]] = lambda arguments: next(iter(arguments.values()))
    shrink: Callable[[Any, tuple[int, int]], torch.Tensor] | None = None

    def place(self, layer: Literal["projected", "next"] | float) -> int:
        """Return the index of a reading's layer."""
        if isinstance(layer, str):
            return self.layer + (layer == "next")
        return max(1, round(layer * len(self.layers))) - 1


@dataclass(frozen=True, eq=False)
class EncoderStates:
    """The encoder's states of one image.

    features:
        [F, Dv], output of the projected layer, the class token first if there is one; None where tokens mix patches
    readings:
        fp32 [V], of keys [V, d], by reading
    grid:
        rows and columns of the image's visual tokens
    project:
        maps features [n, Dv] to visual tokens [n, D]
    shrink:
        maps (rows, columns) to the visual tokens of the picture at that size, for a method that reads `pixels`
    """

    features: torch.Tensor | None
    readings: dict[EncoderReading, torch.Tensor]
    grid: tuple[int, int]
    project: Callable[[torch.Tensor], torch.Tensor]
    shrink: Callable[[tuple[int, int]], torch.Tensor] | None = None


def layer_encoder(
    tower: nn.Module, select_layer: int, projector: nn.Module, class_token: bool, around: nn.Module | None = None
) -> Encoder:
    """Return the encoder of a CLIP or SigLIP tower whose hidden state `select_layer` (as transformers counts) is read.

    around: the module that calls the tower's parts, where that is not the tower itself

    Raises:
        ValueError: the selected state is no layer's output.

    """
    stack = next((one.layers for one in tower.modules() if isinstance(getattr(one, "layers", None), nn.ModuleList)), ())
    number = select_layer % (len(stack) + 1)
    if number == 0:
        raise ValueError(f"hidden state {select_layer} of the vision tower is not the output of an encoder layer")

    def shrink(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        patch = tower.config.patch_size
        small = resized(pixels[None], (size[0] * patch, size[1] * patch))
        features = tower.embeddings(small.to(tower.embeddings.patch_embedding.weight), interpolate_pos_encoding=True)
        features = tower.pre_layrnorm(features) if hasattr(tower, "pre_layrnorm") else features
        for layer in stack[:number]:
            features = layer(features, attention_mask=None)
        return projector(features[:, int(class_token) :])[0]

    return Encoder(stack, number - 1, projector, class_token, tower=around or tower, shrink=shrink)


def resized(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return pixels [N, C, H, W] at (height, width) `size`, bicubic with antialiasing as image processors resize."""
    return F.interpolate(pixels.float(), size, mode="bicubic", antialias=True, align_corners=False)


class EncoderHook:
    """Records the states of images that the encoder processes between `start` and `stop`.

    Keeps the newest `REMEMBERED` images, and always those of the last prompts and those encoded since, as a batch may
    have any number of images.
    """

    def __init__(self, encoder: Encoder, readings: Sequence[EncoderReading]):
        self.encoder, self.readings = encoder, tuple(dict.fromkeys(readings))
        self._hooks: list = []
        self._recorders = {encoder.place(one.layer): _Recorder() for one in readings if one.what != "pixels"}
        self._features: torch.Tensor | None = None
        self._pictures: Sequence[Any] | None = None
        self._images: list[tuple[torch.Tensor, int, EncoderStates]] = []
        self._present = 0
        self._hooks_off = False

    def start(self) -> None:
        """Start recording."""
        for place, recorder in self._recorders.items():
            layer = self.encoder.layers[place]
            self._hooks += [
                layer.register_forward_pre_hook(recorder.enter),
                layer.register_forward_hook(recorder.leave),
            ]
        if any(one.what == "pixels" for one in self.readings):
            hook = self.encoder.tower.register_forward_pre_hook(self._entered, with_kwargs=True)
            self._hooks.append(hook)
        selected = self.encoder.layers[self.encoder.layer]
        self._hooks.append(selected.register_forward_hook(self._encoded))
        self._hooks.append(self.encoder.projector.register_forward_hook(self._projected, with_kwargs=True))

    def stop(self) -> None:
        """Stop recording and clear the records."""
        for hook in self._hooks:
            hook.remove()
        for recorder in self._recorders.values():
            recorder.restore()
            recorder.calls = []
        self._hooks, self._features, self._pictures, self._images, self._present = [], None, None, [], 0

    def _entered(self, module, args, kwargs) -> None:
        names = list(inspect.signature(module.forward).parameters)
        self._pictures = self.encoder.pictures(dict(zip(names, args, strict=False)) | kwargs)

    def _shrunk(self, picture: Any, size: tuple[int, int]) -> torch.Tensor:
        """Encode a picture again, at another size; it is not an image that a prompt shows."""
        self._hooks_off = True
        try:
            with torch.no_grad():
                return self.encoder.shrink(picture, size)
        finally:
            self._hooks_off = False

    def _encoded(self, module, args, output) -> None:
        if self._hooks_off:
            return
        self._features = output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def _projected(self, module, args, kwargs, output) -> None:
        if self._features is None or self._hooks_off:
            return
        features, self._features = self._features, None
        following = self._recorders.get(self.encoder.layer + 1)
        if following is not None and not following.calls:  # the tower stops at the layer that is projected
            self.encoder.layers[self.encoder.layer + 1](features, attention_mask=None)
        images = self.encoder.images(kwargs, output)
        counts = [len(tokens) for tokens in images.tokens]
        measured = {one: self._measure(one, images.patches) for one in self.readings if one.what != "pixels"}
        found = len(next(iter(measured.values()))) if measured else sum(counts)
        if found != sum(counts):
            raise ValueError(
                f"the projector makes {sum(counts)} visual tokens of {found} patches; methods that read the image "
                "encoder need to know which are which"
            )
        parts = {one: values.split(counts) for one, values in measured.items()}
        for number, tokens in enumerate(images.tokens):
            states = EncoderStates(
                features[number] if self.encoder.patchwise else None,
                {one: part[number] for one, part in parts.items()},
                images.grids[number],
                self.encoder.projector.forward,
                None if self._pictures is None else partial(self._shrunk, self._pictures[number]),
            )
            self._images.append((_fingerprint(tokens), len(tokens), states))
        for recorder in self._recorders.values():
            recorder.calls = []
        self._pictures = None
        self._present += len(counts)
        del self._images[: -max(REMEMBERED, self._present)]

    def _measure(self, reading: EncoderReading, patches: torch.Tensor | None) -> torch.Tensor:
        """Return fp32 [ΣV] of a reading over all images just encoded, of keys [ΣV, d]."""
        calls = self._recorders[self.encoder.place(reading.layer)].calls
        values = torch.cat([_read(reading.what, *call, self.encoder.class_token) for call in calls], 1)
        values = values[:, 1:] if self.encoder.class_token else values
        values = values.flatten(0, 1)
        return values if patches is None else values[patches].mean(1)

    def find(self, tokens: PackedTokens) -> dict[int, list[EncoderStates]]:
        """Return the images of every prompt that has visual tokens, in order; one host synchronisation.

        Raises:
            ValueError: visual tokens that are not those of remembered images.

        """
        if not tokens.visual.any():
            return {}
        missing = ValueError(
            "this method reads the image encoder, and these visual tokens are not of an image that it encoded inside "
            f"`with prune(…)` (of earlier batches the newest {REMEMBERED} are remembered): encode the pixels there, "
            "and show their visual tokens whole"
        )
        if not self._images:
            raise missing
        device, hidden = tokens.hidden.device, tokens.hidden[0, :, :COMPARED]
        shown = hidden.index_select(0, upload(np.flatnonzero(tokens.visual), device))
        known = torch.stack([fingerprint.to(shown) for fingerprint, *_ in self._images])  # [K, 3, COMPARED]
        same = (known[:, :, None] == shown).all(-1).cpu().numpy()  # [K, 3, tokens]
        counts, found, place = [count for _, count, _ in self._images], {}, 0
        present: set[int] = set()
        for b, visual in enumerate(tokens.visual_counts):
            end = place + visual
            while place < end:
                number = next(
                    (k for k in np.flatnonzero(same[:, 0, place]) if self._is_at(same[k], counts[k], place, end)), None
                )
                if number is None:
                    raise missing
                found.setdefault(b, []).append(self._images[number][2])
                present.add(int(number))
                place += counts[number]
        order = sorted(range(len(self._images)), key=lambda place: place in present)
        self._images, self._present = [self._images[place] for place in order], len(present)
        return found

    @staticmethod
    def _is_at(same: np.ndarray, count: int, place: int, end: int) -> bool:
        return place + count <= end and all(same[row, place + at] for row, at in enumerate(_sampled(count)))


class _Recorder:
    """Queries and keys of one encoder layer: its calls of the attention function since the images before."""

    def __init__(self):
        self.calls: list[tuple[torch.Tensor, torch.Tensor, float]] = []
        self.implementation: str | None = None
        self.config: Any = None

    def enter(self, module, args) -> None:
        if self.config is None:
            self.config = next(one.config for one in module.modules() if hasattr(one, "config"))
        self.implementation, self.config._attn_implementation = self.config._attn_implementation, NAME
        _RECORDER.set(self)

    def leave(self, module, args, output) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the layer its own attention function back."""
        if self.implementation is not None:
            self.config._attn_implementation, self.implementation = self.implementation, None
            _RECORDER.set(None)


_RECORDER: ContextVar[_Recorder | None] = ContextVar("the encoder layer that runs", default=None)


def _recorded_attention(module, query, key, value, attention_mask=None, scaling=None, **kwargs):
    """Attend as the encoder would, and record query and key [B, H, L, d]."""
    recorder = _RECORDER.get()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    recorder.calls.append((query.detach(), key.detach(), scale))
    own = recorder.implementation
    attend = ALL_ATTENTION_FUNCTIONS["sdpa" if own == "eager" else own]
    return attend(module, query, key, value, attention_mask, scaling=scale, **kwargs)


AttentionInterface.register(NAME, _recorded_attention)


def _read(what: str, query: torch.Tensor, key: torch.Tensor, scale: float, class_token: bool) -> torch.Tensor:
    """Return fp32 [B, L] or keys [B, L, d] of one call: query and key [B, H, L, d]."""
    query, key = query.float(), key.float()
    if what == "keys":
        return key.mean(1)
    if what.startswith("joint"):
        heads = query.shape[1]
        query, key = (part.transpose(1, 2).flatten(2)[:, None] for part in (query, key))
        if what == "joint keys":
            return key[:, 0]
        scale *= heads**-0.5
    if class_token and what != "all":
        query = query[:, :, :1]
    total = key.new_zeros(key.shape[0], key.shape[2])
    for image in range(len(query)):
        for rows in query[image].split(CHUNK, 1):
            total[image] += (rows @ key[image].transpose(-1, -2) * scale).softmax(-1).mean(0).sum(0)
    return total


def _sampled(count: int) -> list[int]:
    return [0, count // 2, count - 1]


def _fingerprint(tokens: torch.Tensor) -> torch.Tensor:
    """Return [3, COMPARED] of an image's visual tokens [V, D]."""
    return tokens[_sampled(len(tokens)), :COMPARED].detach().clone()


class SeenImage(NamedTuple):
    """One image of a prompt: fp32 arrays of the readings asked for, cosines [V, V] or None, states on the device."""

    readings: list[np.ndarray]
    cosines: np.ndarray | None
    states: EncoderStates


@dataclass(frozen=True)
class EncoderProbe(Probe):
    """What the image encoder made of a prompt's images; before layer 0.

    readings:
        what is fetched
    cosines:
        of every two visual tokens' patches in the encoder's features, or where a token mixes patches, of the visual
        tokens themselves; `tokens` always takes these
    """

    readings: tuple[EncoderReading, ...]
    cosines: Literal["features", "tokens"] | None = None

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return the readings of each prompt's images, one after the other, and their cosines."""
        device, result = states.tokens.hidden.device, []
        for b in prompts:
            images = states.vision[b]
            counts = [image.grid[0] * image.grid[1] for image in images]
            hidden = states.tokens.visual_hidden(b).split(counts) if self.cosines else images
            for image, tokens in zip(images, hidden, strict=True):
                result += [image.readings[one].to(device) for one in self.readings if one.what != "pixels"]
                if self.cosines:
                    own = image.features is not None and self.cosines == "features"
                    vectors = image.features[-len(tokens) :].to(device) if own else tokens
                    unit = F.normalize(vectors.float(), dim=-1)
                    result.append(unit @ unit.T)
        return result

    def results(
        self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]
    ) -> list[list[SeenImage]]:
        """Put arrays and states of each image together."""
        rest, count = iter(arrays), sum(one.what != "pixels" for one in self.readings)
        return [
            [
                SeenImage([next(rest) for _ in range(count)], next(rest) if self.cosines else None, image)
                for image in states.vision[b]
            ]
            for b in prompts
        ]
