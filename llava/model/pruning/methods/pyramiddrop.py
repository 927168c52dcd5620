"""PyramidDrop (arXiv 2410.17247), train-free: fewer visual tokens in each stage of the decoder.

The decoder is cut into stages. Where stage s ends, before layer `layers[s]`, visual token j scores
mean_h softmax(q_last · k / √d)[j], q and k those of layer `layers[s]` itself on the tokens that are about to enter it;
the share `ratios[s]` of the prompt's visual tokens with the highest scores stays.

The original code (Cooperx521/PyramidDrop) counts positions again from 0 after each stage (`"positions": "compact"`;
here they stay, which is the default), computes the layer's projections and a causal mask over all rows to read one row
of it, and rounds the counts down as here. It knows one image per prompt: of several, the ratio is of all visual tokens
here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Literal, Self

import numpy as np

from ..method import AtLeast, Layer, Method, PromptState, Share, strongest
from ..probes import Attention, AttentionProbe


@dataclass(frozen=True)
class PyramidDrop(Method, name="pyramiddrop"):
    """Keep a smaller share of the visual tokens from stage to stage.

    layers:
        first layer of every stage but the first; None: at a quarter, half and three quarters of the model's depth
        (8, 16, 24 of 32)
    ratios:
        shares of the prompt's visual tokens that these stages run with
    positions:
        `original`, or `compact` as in the original code
    """

    layers: tuple[Annotated[Layer, AtLeast(1)], ...] | None = None
    ratios: tuple[Share, ...] = (0.5, 0.25, 0.125)
    positions: Literal["original", "compact"] = "original"

    def check(self) -> None:
        if not self.ratios:
            raise ValueError("'ratios' must be a list of numbers, one for each stage after the first, got []")
        if self.layers is not None and len(self.layers) != len(self.ratios):
            raise ValueError(f"'layers' names {len(self.layers)} stages and 'ratios' {len(self.ratios)}; give as many")
        if any(a >= b for a, b in pairwise(self.layers or ())):
            raise ValueError(f"'layers' must rise from stage to stage, got {list(self.layers)}")
        if any(a < b for a, b in pairwise(self.ratios)):
            raise ValueError(f"'ratios' must fall from stage to stage, got {list(self.ratios)}")

    def resolved(self, num_layers: int) -> Self:
        """Fill in `layers`: stages of equal depth."""
        if self.layers is not None:
            return self
        stages = len(self.ratios) + 1
        if num_layers < stages:
            raise ValueError(f"the model's {num_layers} layers cannot be cut into {stages} stages; give fewer 'ratios'")
        return replace(self, layers=tuple(num_layers * stage // stages for stage in range(1, stages)))

    def probe(self, layer: int, prompt: PromptState) -> AttentionProbe | None:
        return AttentionProbe("last", ahead=True) if layer + 1 in self.layers else None

    def select(self, layer: int, prompt: PromptState, measured: Attention | None) -> np.ndarray | None:
        if measured is None:
            return None
        return strongest(measured.last, int(prompt.visual_tokens * self.ratios[self.layers.index(layer + 1)]))

    @classmethod
    def schedules(cls, num_layers: int) -> list[Method]:
        """Three stages of a quarter of the depth, and of ever fewer layers."""
        steps = range(max(num_layers // 4, 1), 0, -1)
        starts = [[layer for layer in (step, 2 * step, 3 * step) if layer < num_layers] for step in steps]
        return [cls(layers=layers, ratios=[1.0] * len(layers)) for layers in starts if layers]

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        return replace(self, ratios=tuple(share**stage for stage in range(1, len(self.ratios) + 1)))
