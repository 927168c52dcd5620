"""VisiPruner (arXiv 2510.17205): merge and skip shallow, keep the influential in the middle, exit in the deep layers.

Two presets give the defaults of every key: `paper`, the method as described, and `released`, what the code published
with the paper computes. Layers count from 0. What is measured is the influence of every visual token on the last prompt
token, at every layer from the first probed one on (`influence`).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np

from ..influence import Influence, Measurement, RelativeInfluence
from ..method import (
    EXIT,
    AtLeast,
    AttentionRule,
    Count,
    KVRule,
    Layer,
    Method,
    PromptState,
    Selection,
    Share,
    scaled_boundary,
)


def is_filter_layer(measured: Measurement, layer_threshold: float) -> bool:
    """The filter layer is the first probed one where some cosine falls below `layer_threshold`."""
    return bool((measured.cosine < layer_threshold).any())


def influential(measured: Measurement, tokens_threshold: float) -> np.ndarray:
    """The visual tokens that stay after the filter layer: those with a longer contribution (L2), bool [V]."""
    return measured.l2 > tokens_threshold


def votes_for_exit(measured: Measurement, exit_threshold: float) -> bool:
    """A later layer votes for the exit when no token that is left has measurable influence."""
    return bool((measured.cosine >= exit_threshold).all())


PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper": {
            "first_layer": "merge",
            "first_layer_visual": "remove",
            "shallow_text": "remove",
            "shallow_visual": "remove",
            "probe_offset": 0,
            "exit_votes": "consecutive",
            "kv": "needed",
        },
        "released": {
            "first_layer": "merge",
            "first_layer_visual": "zero",
            "shallow_text": "zero",
            "shallow_visual": "dense",
            "probe_offset": 1,
            "exit_votes": "cumulative",
            "kv": "all",
        },
    }
)


@dataclass(frozen=True)
class VisiPruner(Method, name="visipruner"):
    """Settings of VisiPruner; a key left out (None) takes the preset's value.

    mode:
        any of `shallow`, `middle`, `deep`; empty is dense
    shallow_mid_layer:
        number of shallow layers; left open, 6 of 32 scaled with the depth of the model (`scaled_boundary`)
    layer_threshold:
        the filter layer is the first probed one where some cosine falls below it; needed by `middle`
    tokens_threshold:
        visual tokens whose contribution is longer (L2) stay; needed by `middle`
    tokens_scale:
        what `tokens_threshold` is compared with: `absolute`, ‖c_j‖, as the method is described, or `relative`,
        ‖c_j‖ / ‖O‖, which the scale of a model's values does not change (the trace's L2 are then relative, too)
    mid_deep_layer:
        first layer without visual tokens; needed by `deep` without `middle`, and of no effect beside it
    exit_threshold, exit_patience, exit_votes:
        a layer votes for the exit when every kept token's cosine is at least the threshold; that many votes,
        `consecutive` or `cumulative`, end vision from the next layer on
    first_layer, sink_token:
        text rows of layer 0: `merge` all visual attention into visual token number `sink_token`, or zero the first
        `half` of it
    first_layer_visual, shallow_text, shallow_visual:
        visual rows of layer 0; text and visual rows of the other shallow layers (see `AttentionRule`)
    probe_offset:
        probing starts at layer `shallow_mid_layer + probe_offset`
    kv:
        `needed`: shallow layers keep only text for decoding, layer 0 the sink as well; `all`: what each layer ran with

    Keys that the mode does not use are checked and have no effect.
    """

    mode: tuple[Literal["shallow", "middle", "deep"], ...]
    shallow_mid_layer: Layer | None = None
    layer_threshold: Share | None = None
    tokens_threshold: Annotated[float, AtLeast(0)] | None = None
    mid_deep_layer: Annotated[Layer, AtLeast(1)] | None = None
    tokens_scale: Literal["absolute", "relative"] = "absolute"
    preset: Literal["paper", "released"] = "paper"
    exit_threshold: Share = 0.999
    exit_patience: Annotated[int, AtLeast(1)] = 2
    sink_token: Count = 0
    first_layer: Literal["merge", "half"] | None = None
    first_layer_visual: Literal["remove", "zero", "dense"] | None = None
    shallow_text: Literal["remove", "zero"] | None = None
    shallow_visual: Literal["remove", "zero", "dense"] | None = None
    probe_offset: Count | None = None
    exit_votes: Literal["consecutive", "cumulative"] | None = None
    kv: Literal["needed", "all"] | None = None

    def probe(self, layer: int, prompt: PromptState) -> Influence | None:
        if not self.middle or layer < self.shallow_mid_layer + self.probe_offset:
            return None
        if prompt.filter_layer is not None and not self.deep:
            return None
        return RelativeInfluence() if self.tokens_scale == "relative" else Influence()

    def select(self, layer: int, prompt: PromptState, measured: Measurement | None) -> np.ndarray | Selection | None:
        if measured is None:
            return EXIT if self.deep and not self.middle and layer + 1 == self.mid_deep_layer else None
        if prompt.filter_layer is None:
            found = is_filter_layer(measured, self.layer_threshold)
            return influential(measured, self.tokens_threshold) if found else None
        votes = prompt.memory.get("votes", 0)
        if votes_for_exit(measured, self.exit_threshold):
            votes += 1
        elif self.exit_votes == "consecutive":
            votes = 0
        prompt.memory["votes"] = votes
        return EXIT if votes == self.exit_patience else None

    def attention(self, layer: int) -> AttentionRule:
        if not self.shallow or layer >= self.shallow_mid_layer:
            return AttentionRule()
        if layer == 0:
            return AttentionRule(text=self.first_layer, visual=self.first_layer_visual, sink=self.sink_token)
        return AttentionRule(text=self.shallow_text, visual=self.shallow_visual)

    def cached(self, layer: int) -> KVRule:
        if self.kv == "all" or not self.shallow or layer >= self.shallow_mid_layer:
            return KVRule()
        return KVRule(visual="sink", sink=self.sink_token) if layer == 0 else KVRule(visual="none")

    @property
    def shallow(self) -> bool:
        """Whether the shallow stage is on."""
        return "shallow" in self.mode

    @property
    def middle(self) -> bool:
        """Whether the middle stage is on."""
        return "middle" in self.mode

    @property
    def deep(self) -> bool:
        """Whether the deep stage is on."""
        return "deep" in self.mode

    def check(self) -> None:
        for key, value in PRESETS[self.preset].items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        if len(set(self.mode)) < len(self.mode):
            raise ValueError(f"'mode' names a stage twice: {list(self.mode)}")
        if self.shallow and self.shallow_mid_layer == 0:
            raise ValueError("'shallow_mid_layer' must be an integer ≥ 1, got 0 (or leave 'shallow' out of 'mode')")
        needed = ["layer_threshold", "tokens_threshold"] if self.middle else ["mid_deep_layer"] if self.deep else []
        if missing := [key for key in needed if getattr(self, key) is None]:
            raise ValueError(f"mode {list(self.mode)} needs {' and '.join(map(repr, missing))} in the pruning config")
        if self.middle and self.mid_deep_layer is not None:
            warnings.warn(
                f"'mid_deep_layer' ({self.mid_deep_layer}) has no effect beside 'middle', which finds the exit layer "
                "per prompt; leave it out, or 'middle'",
                stacklevel=4,
            )
        if "mid_deep_layer" in needed and self.shallow and self.mid_deep_layer < (self.shallow_mid_layer or 0):
            raise ValueError(
                f"'mid_deep_layer' ({self.mid_deep_layer}) lies before 'shallow_mid_layer' ({self.shallow_mid_layer}); "
                "vision cannot end inside the shallow stage"
            )

    def resolved(self, num_layers: int) -> VisiPruner:
        """Fill in `shallow_mid_layer` where the mode needs it: 6 of 32 layers, scaled."""
        if self.shallow_mid_layer is not None or not (self.shallow or self.middle):
            return self
        return dataclasses.replace(self, shallow_mid_layer=scaled_boundary(6, num_layers))

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when a boundary that the mode uses is not a layer of the model."""
        config = self.resolved(num_layers)
        used = {"shallow_mid_layer": self.shallow or self.middle, "mid_deep_layer": self.deep and not self.middle}
        for key, value in config.layer_settings().items():
            if used[key] and value >= num_layers:
                raise ValueError(
                    f"{key!r} is {value}, but the model has {num_layers} layers; it must be at most {num_layers - 1}"
                )
        first = (config.shallow_mid_layer or 0) + self.probe_offset
        if self.middle and first > num_layers:  # equal: `released` at its last boundary, which the published code takes
            raise ValueError(
                f"'shallow_mid_layer' + 'probe_offset' is {first}, but the model has {num_layers} layers: "
                "no layer would be probed and nothing pruned"
            )
