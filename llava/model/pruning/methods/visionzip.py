"""VisionZip (arXiv 2412.04467): before the decoder, dominant tokens of the image encoder and merged contextual ones.

In the encoder layer whose output the projector reads, the class token's attention (summed over heads) ranks an image's
patches. The class token and the best `dominant` − 1 patches stay. Of the rest, every ⌊rest / contextual⌋-th patch
becomes a target; the others join the target with the most similar key (cosine, heads averaged), and a contextual token
is the target's feature plus the mean feature of those that joined. All of it goes through the projector.

The original code (dvlab-research/VisionZip, text-independent, no training) drops the untouched tokens from the
sequence, so that the text follows closer: `"positions": "compact"`, with the class token first, then dominant, then
contextual ones. Here the default keeps positions: a patch its own, the class token that of the first patch that is
free. It replaces methods of CLIP's classes for the whole process; here the encoder runs as it is. It reads hidden state
−2 whatever the checkpoint selects, and fails with towers of other than 24 layers (here: the layer that the projector
reads); it ranks and merges in half precision (here fp32); its function's own defaults are 191 and 30; `contextual` 0
divides by zero (here allowed); where dominant and contextual tokens are as many as patches it still merges one patch
away (here nothing is pruned, with a warning). Its path for LLaVA-NeXT is not offered here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch

from ..method import AtLeast, Count, Method, PromptState, Selection, strongest
from ..packed import upload
from ..probes import LayerStates, Probe
from ..vision import EncoderStates
from .controls import RandomPruning
from .ranking import warn_nothing_pruned

MERGED = 10 / 64
"""Share of the tokens that are merged ones, as published: 10 of 64."""


@dataclass(frozen=True)
class VisionZip(Method, name="visionzip"):
    """Keep `dominant` + `contextual` visual tokens of every image, before the decoder.

    dominant:
        tokens chosen by the class token's attention, the class token itself among them where `class_token` is on
    contextual:
        tokens that the rest of the image is merged into
    class_token:
        whether the class token, which LLaVA does not show to its decoder, becomes a visual token
    positions:
        `original`, or `compact` as in the original code
    """

    dominant: Annotated[int, AtLeast(1)] = 54
    contextual: Count = 10
    class_token: bool = True
    positions: Literal["original", "compact"] = "original"

    before_decoder = True
    reads_vision = True

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        return EncoderProbe() if layer < 0 else None

    def select(self, layer: int, prompt: PromptState, measured: Zippable | None) -> Selection | None:
        if measured is None:
            return None
        tokens, patches = self.dominant + self.contextual, measured.attention.shape[1]
        if tokens >= patches:
            warn_nothing_pruned("'dominant' + 'contextual'", self, tokens, patches)
            return None
        plans = [zip_image(*arrays, self) for arrays in zip(measured.attention, measured.keys, strict=True)]

        def rewrite(visual: torch.Tensor) -> torch.Tensor:
            """[V, D] → [kept, D]: each image's features mixed, then projected."""
            parts = []
            for (_, mix), image in zip(plans, measured.images, strict=True):
                features = upload(mix, image.features.device) @ image.features.float()
                parts.append(image.project(features.to(image.features.dtype)).to(visual))
            return torch.cat(parts)

        return Selection(np.concatenate([keep for keep, _ in plans]), rewrite)

    @classmethod
    def schedules(cls, num_layers: int) -> list[Method]:
        """The one there is."""
        return [cls()]

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        count = max(2, round(share * visual_tokens))
        merged = round(MERGED * count)
        return replace(self, dominant=count - merged, contextual=merged)

    def countable(self, visual_tokens: int) -> Method:
        return RandomPruning(share=min(1.0, (self.dominant + self.contextual) / visual_tokens), before=self.before)


class Zippable(NamedTuple):
    """The images of a prompt: attention [n, P], keys [n, 1 + P, d], and their encoder states on the device."""

    attention: np.ndarray
    keys: np.ndarray
    images: list[EncoderStates]


@dataclass(frozen=True)
class EncoderProbe(Probe):
    """What the image encoder made of a prompt's images."""

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return attention [n, P] and keys [n, 1 + P, d] of each prompt's images."""
        device, result = states.tokens.hidden.device, []
        for b in prompts:
            images = states.vision[b]
            result.append(torch.stack([image.attention for image in images]).to(device))
            result.append(torch.stack([image.keys for image in images]).to(device))
        return result

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[Zippable]:
        """Put arrays and states of each prompt together."""
        pairs = zip(arrays[::2], arrays[1::2], prompts, strict=True)
        return [Zippable(attention, keys, states.vision[b]) for attention, keys, b in pairs]


def zip_image(attention: np.ndarray, keys: np.ndarray, config: VisionZip) -> tuple[np.ndarray, np.ndarray]:
    """Return which patches' places stay, bool [P], and what goes there: fp32 [kept, 1 + P], rows of feature weights.

    attention [P], keys [1 + P, d]; the class token is feature 0, patch p feature 1 + p.
    """
    patches = len(attention)
    dominant = np.flatnonzero(strongest(attention, config.dominant - config.class_token))
    rest = np.setdiff1d(np.arange(patches), dominant)
    step = max(1, len(rest) // max(config.contextual, 1))
    targets = rest[::step][: config.contextual]
    joining = np.setdiff1d(rest, targets)
    rows: list[tuple[int, Any]] = [(int(patch), {1 + patch: 1.0}) for patch in dominant]
    unit = keys[1:] / np.linalg.norm(keys[1:], axis=1, keepdims=True)
    nearest = (unit[joining] @ unit[targets].T).argmax(1) if len(targets) else []
    for number, target in enumerate(targets):
        members = joining[nearest == number]
        rows.append((int(target), {1 + target: 1.0} | {1 + patch: 1 / len(members) for patch in members}))
    if config.class_token:
        free = np.setdiff1d(rest, targets)[0]
        rows.insert(0, (int(free), {0: 1.0}))
    keep = np.zeros(patches, bool)
    keep[[place for place, _ in rows]] = True
    if config.positions == "original":
        rows.sort(key=lambda row: row[0])
    mix = np.zeros((len(rows), 1 + patches), np.float32)
    for row, (_, weights) in enumerate(rows):
        mix[row, list(weights)] = list(weights.values())
    return keep, mix
