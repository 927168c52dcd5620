"""PyramidDrop (arXiv 2410.17247), train-free: fewer visual tokens in each stage of the decoder.

The decoder is cut into stages. Where stage s ends, before layer `layers[s]`, visual token j scores
mean_h softmax(q_last · k / √d)[j], q and k those of layer `layers[s]` itself on the tokens that are about to enter it;
the share `ratios[s]` of the prompt's visual tokens with the highest scores stays.

The original code (Cooperx521/PyramidDrop) counts positions anew after each stage (`"positions": "compact"`; here they
stay, which is the default), computes the layer's projections and a causal mask over all rows to read one row of it, and
rounds the counts down as here. It knows one image a prompt: for several, the ratio is of all visual tokens here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from ..config import PruningConfig
from ..policy import Policy, strongest
from ..probes import Attention, AttentionProbe
from .budget import as_tuple, check_in_decoder, check_positions


@dataclass(frozen=True)
class PyramidDrop(PruningConfig):
    """Keep a smaller share of the visual tokens from stage to stage.

    layers:
        first layer of every stage but the first; None: at a quarter, half and three quarters of the model's depth
        (8, 16, 24 of 32)
    ratios:
        shares of the prompt's visual tokens that these stages run with
    positions:
        `original`, or `compact` as in the original code
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)
    positions: str = "original"

    method: ClassVar[str] = "pyramiddrop"

    def __post_init__(self):
        super().__post_init__()
        as_tuple(self, "layers", int, 1)
        as_tuple(self, "ratios", float, 0, 1)
        if self.ratios is None:
            raise ValueError("method 'pyramiddrop' needs 'ratios' in the pruning config; leave it out for the default")
        check_positions(self)
        if self.layers is not None and len(self.layers) != len(self.ratios):
            raise ValueError(f"'layers' names {len(self.layers)} stages and 'ratios' {len(self.ratios)}; give as many")
        for key, steps in (("layers", self.layers or ()), ("ratios", [-ratio for ratio in self.ratios])):
            if any(a > b or (key == "layers" and a == b) for a, b in zip(steps, steps[1:], strict=False)):
                order = "rise" if key == "layers" else "fall"
                raise ValueError(f"{key!r} must {order} from stage to stage, got {list(getattr(self, key))}")

    def resolved(self, num_layers: int) -> Self:
        """Fill in `layers`: stages of equal depth."""
        if self.layers is not None:
            return self
        stages = len(self.ratios) + 1
        if num_layers < stages:
            raise ValueError(f"the model's {num_layers} layers cannot be cut into {stages} stages; give fewer 'ratios'")
        return replace(self, layers=tuple(num_layers * stage // stages for stage in range(1, stages)))

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when a stage does not begin at a layer of the model."""
        check_in_decoder(self, num_layers, "layers")

    def start(self, num_layers: int) -> Policy:
        """Return the decision maker of one prompt."""
        return _Prompt(dict(zip(self.layers, self.ratios, strict=True)))


class _Prompt(Policy):
    def __init__(self, starts: dict[int, float]):
        self.starts = starts
        self.visual_tokens: int | None = None

    def probe(self, layer: int) -> AttentionProbe | None:
        return AttentionProbe(("last",), ahead=True) if layer + 1 in self.starts else None

    def keep(self, layer: int, positions: np.ndarray, measured: Attention | None) -> np.ndarray | None:
        if self.visual_tokens is None:
            self.visual_tokens = len(positions)
        if measured is None:
            return None
        if self.filter_layer is None:
            self.filter_layer = layer
        return strongest(measured.last, int(self.visual_tokens * self.starts[layer + 1]))
