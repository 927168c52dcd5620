"""FastV (arXiv 2403.06764): after K layers, drop the visual tokens that the last prompt token attends to least.

With A the attention of layer K−1, averaged over heads, visual token j scores A[last, j]; the (1−R)·V highest stay for
layers K, K+1, … at their positions.

The original code (pkunlp-icler/FastV) has several versions. Two in its fork of transformers take the number to keep
(`fast_v_attention_rank`) instead of R: one hides the dropped tokens behind an attention mask and saves nothing, one
drops them from the cache as well. Its version for LLaVA in transformers' own classes (`llava-hf`) takes R and rounds as
here; the one for lmms-eval truncates (1−R)·V. They take the places of one image as constants, batch 1, and with K = 0
draw tokens at random (here: method `random`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from ..method import AtLeast, Layer, Method, PromptState, Share, strongest
from ..probes import Attention, AttentionProbe


@dataclass(frozen=True)
class FastV(Method, name="fastv"):
    """Drop the share `r` of the visual tokens after `k` layers.

    k:
        number of layers that run with all visual tokens, from 1; the last of them ranks
    r:
        share of the visual tokens that is dropped
    """

    k: Annotated[Layer, AtLeast(1)] = 2
    r: Share = 0.5

    def probe(self, layer: int, prompt: PromptState) -> AttentionProbe | None:
        return AttentionProbe("last") if layer + 1 == self.k else None

    def select(self, layer: int, prompt: PromptState, measured: Attention | None) -> np.ndarray | None:
        return None if measured is None else strongest(measured.last, round((1 - self.r) * prompt.visual_tokens))

    @classmethod
    def schedules(cls, num_layers: int) -> list[Method]:
        """Every `k`."""
        return [cls(k=k) for k in range(1, num_layers)]

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        return replace(self, r=1 - share)
