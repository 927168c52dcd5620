"""VisionZip (arXiv 2412.04467): before the decoder, dominant tokens of the image encoder and merged contextual ones.

In the encoder layer whose output the projector reads, the class token's attention (averaged over heads) ranks the
patches of an image. The class token and the best `dominant` − 1 patches stay. Of the rest, every
⌊rest / contextual⌋-th patch becomes a target; the others join the target with the most similar key (cosine, heads
averaged), and a contextual token is the target's feature plus the mean feature of those that joined. All of it goes
through the projector.

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

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np

from ..method import AtLeast, Count, Method, PromptState, Selection, strongest
from ..probes import Probe
from ..vision import EncoderProbe, EncoderReading, SeenImage
from .by_encoder import Place, mixed
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
    reads_vision: ClassVar = (EncoderReading("class"), EncoderReading("keys"))
    encoder_needs = ("class_token", "patchwise")

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        return EncoderProbe(self.reads_vision) if layer < 0 else None

    def select(self, layer: int, prompt: PromptState, measured: list[SeenImage] | None) -> Selection | None:
        if measured is None:
            return None
        tokens, patches = self.dominant + self.contextual, len(measured[0].readings[0])
        if tokens >= patches:
            warn_nothing_pruned("'dominant' + 'contextual'", self, tokens, patches)
            return None
        return mixed([(image, zip_image(*image.readings, self)) for image in measured], self.positions)

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


def zip_image(attention: np.ndarray, keys: np.ndarray, config: VisionZip) -> list[Place]:
    """Return what stays of one image: attention [P], keys [P, d]; feature 0 is the class token, patch p is 1 + p."""
    dominant = np.flatnonzero(strongest(attention, config.dominant - config.class_token))
    rest = np.setdiff1d(np.arange(len(attention)), dominant)
    step = max(1, len(rest) // max(config.contextual, 1))
    targets = rest[::step][: config.contextual]
    joining = np.setdiff1d(rest, targets)
    rows: list[Place] = [(int(patch), {1 + patch: 1.0}) for patch in dominant]
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    nearest = (unit[joining] @ unit[targets].T).argmax(1) if len(targets) else []
    for number, target in enumerate(targets):
        members = joining[nearest == number]
        rows.append((int(target), {1 + target: 1.0} | {1 + patch: 1 / len(members) for patch in members}))
    if config.class_token:
        free = np.setdiff1d(rest, targets)[0]
        rows.insert(0, (int(free), {0: 1.0}))
    return rows
