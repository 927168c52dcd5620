"""VisiPruner (arXiv 2510.17205): merge and skip shallow, keep the influential in the middle, exit in the deep layers.

Two presets give the defaults of every key: `paper`, the method as described, and `released`, what the code published
with the paper computes. Layers count from 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from ..config import PruningConfig, check_choice, check_number, scaled_boundary
from ..influence import Influence, Measurement
from ..policy import AttentionRule, KVRule, Policy
from .relative_influence import RelativeInfluence

STAGES = ("shallow", "middle", "deep")

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
class VisiPruner(PruningConfig):
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
        first layer without visual tokens; needed by `deep` without `middle`
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

    mode: tuple[str, ...] | None = None
    shallow_mid_layer: int | None = None
    layer_threshold: float | None = None
    tokens_threshold: float | None = None
    mid_deep_layer: int | None = None
    tokens_scale: str = "absolute"
    preset: str = "paper"
    exit_threshold: float = 0.999
    exit_patience: int = 2
    sink_token: int = 0
    first_layer: str | None = None
    first_layer_visual: str | None = None
    shallow_text: str | None = None
    shallow_visual: str | None = None
    probe_offset: int | None = None
    exit_votes: str | None = None
    kv: str | None = None

    method: ClassVar[str] = "visipruner"

    def __post_init__(self):
        super().__post_init__()
        check_choice("preset", self.preset, tuple(PRESETS))
        for key, value in PRESETS[self.preset].items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, value)
        self._check_mode()
        check_choice("first_layer", self.first_layer, ("merge", "half"))
        check_choice("first_layer_visual", self.first_layer_visual, ("remove", "zero", "dense"))
        check_choice("shallow_text", self.shallow_text, ("remove", "zero"))
        check_choice("shallow_visual", self.shallow_visual, ("remove", "zero", "dense"))
        check_choice("tokens_scale", self.tokens_scale, ("absolute", "relative"))
        check_choice("exit_votes", self.exit_votes, ("consecutive", "cumulative"))
        check_choice("kv", self.kv, ("needed", "all"))
        check_number("exit_threshold", self.exit_threshold, float, 0, 1)
        check_number("exit_patience", self.exit_patience, int, 1)
        check_number("sink_token", self.sink_token, int, 0)
        check_number("probe_offset", self.probe_offset, int, 0)
        for key, kind, low, high in (
            ("shallow_mid_layer", int, 1 if self.shallow else 0, None),
            ("layer_threshold", float, 0, 1),
            ("tokens_threshold", float, 0, None),
            ("mid_deep_layer", int, 1, None),
        ):
            if getattr(self, key) is not None:
                check_number(key, getattr(self, key), kind, low, high)
        needed = []
        if self.middle:
            needed += ["layer_threshold", "tokens_threshold"]
        if self.deep and not self.middle:
            needed += ["mid_deep_layer"]
        missing = [key for key in needed if getattr(self, key) is None]
        if missing:
            raise ValueError(f"mode {list(self.mode)} needs {' and '.join(map(repr, missing))} in the pruning config")
        if "mid_deep_layer" in needed and self.shallow and self.mid_deep_layer < (self.shallow_mid_layer or 0):
            raise ValueError(
                f"'mid_deep_layer' ({self.mid_deep_layer}) lies before 'shallow_mid_layer' ({self.shallow_mid_layer}); "
                "vision cannot end inside the shallow stage"
            )

    def _check_mode(self):
        if self.mode is None:
            raise ValueError('the pruning config needs "mode": a list of "shallow", "middle", "deep" ([] is dense)')
        if not isinstance(self.mode, list | tuple):
            raise ValueError(
                f"'mode' must be a list of {', '.join(STAGES)}, got {type(self.mode).__name__} {self.mode!r}"
            )
        for stage in self.mode:
            check_choice("mode", stage, STAGES)
        if len(set(self.mode)) < len(self.mode):
            raise ValueError(f"'mode' names a stage twice: {list(self.mode)}")
        object.__setattr__(self, "mode", tuple(self.mode))

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

    def resolved(self, num_layers: int) -> VisiPruner:
        """Fill in `shallow_mid_layer` where the mode needs it: 6 of 32 layers, scaled."""
        if self.shallow_mid_layer is not None or not (self.shallow or self.middle):
            return self
        return dataclasses.replace(self, shallow_mid_layer=scaled_boundary(6, num_layers))

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when a boundary that the mode uses is not a layer of the model."""
        if self.resolved(num_layers) is not self:
            return self.resolved(num_layers).check_layers(num_layers)
        used = [("shallow_mid_layer", self.shallow or self.middle), ("mid_deep_layer", self.deep and not self.middle)]
        for key, on in used:
            if on and getattr(self, key) >= num_layers:
                raise ValueError(
                    f"{key!r} is {getattr(self, key)}, but the model has {num_layers} layers; "
                    f"it must be at most {num_layers - 1}"
                )
        first = (self.shallow_mid_layer or 0) + self.probe_offset
        if self.middle and first > num_layers:  # equal: `released` at its last boundary, which the published code takes
            raise ValueError(
                f"'shallow_mid_layer' + 'probe_offset' is {first}, but the model has {num_layers} layers: "
                "no layer would be probed and nothing pruned"
            )

    def attention(self, layer: int) -> AttentionRule:
        """Merge in layer 0, skip in the other shallow layers, dense from `shallow_mid_layer` on."""
        if not self.shallow or layer >= self.shallow_mid_layer:
            return AttentionRule()
        if layer == 0:
            return AttentionRule(text=self.first_layer, visual=self.first_layer_visual, sink=self.sink_token)
        return AttentionRule(text=self.shallow_text, visual=self.shallow_visual)

    def cached(self, layer: int) -> KVRule:
        """Keep what decoding reads (`needed`), or everything the layer ran with (`all`)."""
        if self.kv == "all" or not self.shallow or layer >= self.shallow_mid_layer:
            return KVRule()
        return KVRule(visual="sink", sink=self.sink_token) if layer == 0 else KVRule(visual="none")

    def start(self, num_layers: int) -> Policy:
        """Return the decision maker of one prompt."""
        return _Prompt(self)


class _Prompt(Policy):
    def __init__(self, config: VisiPruner):
        self.config = config
        self.influence = RelativeInfluence() if config.tokens_scale == "relative" else Influence()
        self.votes = 0

    def probe(self, layer: int) -> Influence | None:
        config = self.config
        if not config.middle:
            return None
        if self.filter_layer is None:
            return self.influence if layer >= config.shallow_mid_layer + config.probe_offset else None
        return self.influence if config.deep else None

    def keep(self, layer: int, positions: np.ndarray, measured: Measurement | None) -> np.ndarray | None:
        config = self.config
        if measured is None:
            ends = config.deep and not config.middle and layer + 1 == config.mid_deep_layer
            return np.zeros(len(positions), bool) if ends else None
        if self.filter_layer is None:
            if not (measured.cosine < config.layer_threshold).any():
                return None
            self.filter_layer = layer
            return measured.l2 > config.tokens_threshold
        if (measured.cosine >= config.exit_threshold).all():
            self.votes += 1
        elif config.exit_votes == "consecutive":
            self.votes = 0
        return np.zeros(len(positions), bool) if self.votes == config.exit_patience else None
