"""CDPruner (arXiv 2506.10967): before the decoder, a diverse set of visual tokens that fits the question.

A determinantal point process with the kernel r_i cos(x_i, x_j) r_j over the visual tokens' embeddings x, where r is the
relevance to the question: minus the mean cosine of x_i to the text tokens behind the image, moved and scaled to [0, 1].
Tokens are chosen greedily by the determinant; where none adds to it any more, by relevance. For several images the
tokens of all are one set.

The original code (Theia-4869/CDPruner) takes the relevance from CLIP: the tower's features through its last norm and
projection, and the question through CLIP's text model, which a LLaVA checkpoint does not hold. Where the two are not
there, OpenVINO GenAI's CDPruner takes, as here, the decoder's own embeddings for both, again with the minus. The
original's relevance is scaled over all images of a batch at once, each image then keeps the same number of tokens,
roots of negative rounding errors are not a number, and positions close up (here they stay).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch.nn.functional import normalize

from ..method import AtLeast, PromptState, Share
from ..packed import upload
from ..probes import LayerStates, Probe, rows_of
from .by_encoder import chosen
from .ranking import BeforeDecoder, kept_count

EPSILON = 1e-6
ROUNDING = 1e-5
"""Share of the largest gain below which a gain is rounding."""


@dataclass(frozen=True)
class CDPruner(BeforeDecoder, name="cdpruner"):
    """Keep visual tokens that are diverse and fit the question, before the decoder.

    keep, share:
        visual tokens that stay, as a number from 1 or as a share of the prompt's
    """

    keep: Annotated[int, AtLeast(1)] | None = None
    share: Share | None = None

    no_reuse = "chooses an image's tokens anew for every question"

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        return ConditionalKernel() if layer < 0 else None

    def select(self, layer: int, prompt: PromptState, measured: np.ndarray | None) -> np.ndarray | None:
        if measured is None:
            return None
        return chosen(len(measured), most_probable(measured, max(kept_count(self, prompt), 1)))


@dataclass(frozen=True)
class ConditionalKernel(Probe):
    """The kernel of a prompt's visual tokens given its question, fp32 [V, V]."""

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return [V, V] of each prompt."""
        tokens, result = states.tokens, []
        for b in prompts:
            rows = upload(tokens.spans[b][0] + rows_of(tokens, b, "text"), tokens.hidden.device)
            text = normalize(tokens.hidden[0].index_select(0, rows).float(), dim=-1)
            visual = normalize(tokens.visual_hidden(b).float(), dim=-1)
            relevance = -(visual @ text.T).mean(-1)
            spread = (relevance.max() - relevance.min()).clamp_min(EPSILON)
            relevance = (relevance - relevance.min() + EPSILON) / spread
            result.append(relevance[:, None] * (visual @ visual.T) * relevance)
        return result


def most_probable(kernel: np.ndarray, count: int) -> list[int]:
    """Return `count` indices of a greedy maximum of the determinant of `kernel` [V, V], in the order of choice."""
    gain = kernel.diagonal().astype(np.float64)
    basis, least = np.zeros((count, len(kernel))), ROUNDING * gain.max()
    places: list[int] = []
    for number in range(count):
        best = int(gain.argmax())
        if gain[best] <= least:
            rest = np.setdiff1d(np.arange(len(kernel)), places)
            relevant = rest[np.argsort(-kernel.diagonal()[rest], kind="stable")]
            return places + relevant[: count - number].tolist()
        places.append(best)
        basis[number] = (kernel[best] - basis[:number, best] @ basis[:number]) / np.sqrt(gain[best])
        gain = gain - np.square(basis[number])
        gain[places] = -np.inf
    return places
