"""Replay a plan: a recorded trace, or filter layer, kept tokens and exit layer as given. Nothing is measured.

For timing (what a decision costs is left out, what it saves is not) and for running one prompt's decisions on other
weights. A plan that keeps positions repeats them and needs a prompt that has visual tokens there; a plan that keeps a
number spreads them evenly over the visual tokens. Merged states (SparseVLM, VisionZip) are not recorded: their plans
replay with the same numbers of tokens, each with its own state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..config import PruningConfig, check_choice, check_number
from ..policy import AttentionRule, KVRule, Policy

Cut = tuple[int, "int | tuple[int, ...]"]


@dataclass(frozen=True)
class Replay(PruningConfig):
    """Prune as planned: either `trace`, or `cuts`, or `filter_layer` and `keep` with or without `exit_layer`.

    filter_layer:
        last layer that runs with all visual tokens, from 0
    keep:
        visual tokens that stay from the next layer on: a number, or a list of their positions in the prompt
    exit_layer:
        first layer without visual tokens; None: they stay to the end
    shallow_layers:
        number of first layers that attend, and are cached, as VisiPruner's `paper` preset does with its shallow ones
    trace:
        a trace as `PruningTrace.to_dict()` gives it (its attention and cache rules are replayed too), or a line of an
        answers file, or the `metadata` of one (rules are not in it); turned into the other keys
    cuts:
        the whole plan: [layer, keep] each time that tokens are dropped after a layer (−1: before the decoder)
    rules, kv:
        of every layer, as recorded: [text, visual, sink], see `AttentionRule`; and `all`, `none` or `sink`
    """

    filter_layer: int | None = None
    keep: int | tuple[int, ...] | None = None
    exit_layer: int | None = None
    shallow_layers: int = 0
    trace: Mapping[str, Any] | None = None
    cuts: tuple[Cut, ...] | None = None
    rules: tuple[tuple[str, str, int], ...] | None = None
    kv: tuple[str, ...] | None = None

    method: ClassVar[str] = "replay"

    def __post_init__(self):
        super().__post_init__()
        short = self.filter_layer is not None or self.keep is not None or self.exit_layer is not None
        if short + (self.trace is not None) + (self.cuts is not None) != 1:
            raise ValueError(
                "method 'replay' needs one of 'trace', 'cuts', or 'filter_layer' and 'keep' (or 'exit_layer' alone)"
            )
        if self.trace is not None:
            self._read_trace()
        elif short:
            self._read_short()
        self._check_cuts()
        check_number("shallow_layers", self.shallow_layers, int, 0)
        if self.shallow_layers and self.rules is not None:
            raise ValueError("'shallow_layers' and recorded 'rules' exclude each other; leave one out")
        self._check_rules()

    def _set(self, key: str, value: Any) -> None:
        object.__setattr__(self, key, value)

    def _read_short(self) -> None:
        if (self.filter_layer is None) != (self.keep is None):
            raise ValueError("method 'replay' needs 'filter_layer' and 'keep' together")
        cuts = []
        if self.filter_layer is not None:
            check_number("filter_layer", self.filter_layer, int, -1)
            cuts.append((self.filter_layer, self.keep))
        if self.exit_layer is not None:
            check_number("exit_layer", self.exit_layer, int, 0 if self.filter_layer is None else self.filter_layer + 2)
            cuts.append((self.exit_layer - 1, 0))
        for key, value in (("cuts", cuts), ("filter_layer", None), ("keep", None), ("exit_layer", None)):
            self._set(key, value)

    def _read_trace(self) -> None:
        trace = self.trace.get("metadata", self.trace) if isinstance(self.trace, Mapping) else None
        if not isinstance(trace, Mapping) or "tokens_per_layer" not in trace:
            raise ValueError(
                "'trace' must be what PruningTrace.to_dict() gives, or a line of an answers file; "
                f"got {type(self.trace).__name__} without 'tokens_per_layer'"
            )
        cuts = trace.get("cuts")
        if not cuts:
            cuts = [] if trace["filter_layer"] is None else [(trace["filter_layer"], trace["kept"])]
            if trace["exit_layer"] is not None and (trace["filter_layer"] is None or trace["kept"]):
                cuts.append((trace["exit_layer"] - 1, []))
        self._set("cuts", cuts)
        self._set("trace", None)
        if "rules" not in trace or all(AttentionRule(**rule).dense for rule in trace["rules"]):
            return
        self._set("rules", [(rule["text"], rule["visual"], rule["sink"]) for rule in trace["rules"]])
        columns = (trace[f"{name}_per_layer"] for name in ("kv_tokens", "tokens", "visual"))
        self._set("kv", [_kv(*numbers) for numbers in zip(*columns, strict=True)])

    def _check_cuts(self) -> None:
        cuts, last = [], -2
        if not isinstance(self.cuts, list | tuple):
            raise ValueError(f"'cuts' must be a list of [layer, keep], got {type(self.cuts).__name__}")
        for cut in self.cuts:
            if not isinstance(cut, list | tuple) or len(cut) != 2:
                raise ValueError(f"'cuts' must be a list of [layer, keep], got {cut!r} in it")
            layer, keep = cut
            check_number("cuts", layer, int, last + 1)
            if isinstance(keep, list | tuple):
                for position in keep:
                    check_number("keep", position, int, 0)
                keep = tuple(keep)
            else:
                check_number("keep", keep, int, 0)
            cuts.append((layer, keep))
            last = layer
        self._set("cuts", tuple(cuts))

    def _check_rules(self) -> None:
        if self.rules is None:
            return
        for text, visual, sink in self.rules:
            check_choice("rules", text, ("dense", "merge", "half", "zero", "remove"))
            check_choice("rules", visual, ("dense", "zero", "remove"))
            check_number("rules", sink, int, 0)
        self._set("rules", tuple(tuple(rule) for rule in self.rules))
        for name in self.kv or ():
            check_choice("kv", name, ("all", "none", "sink"))
        self._set("kv", ("all",) * len(self.rules) if self.kv is None else tuple(self.kv))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as `cuts`, JSON-ready."""
        settings = super().to_dict()
        settings["cuts"] = [[layer, list(keep) if isinstance(keep, tuple) else keep] for layer, keep in self.cuts]
        if self.rules is not None:
            settings["rules"] = [list(rule) for rule in self.rules]
        return settings

    @property
    def before_decoder(self) -> bool:
        """True where the plan ends before layer 0."""
        return all(layer < 0 for layer, _ in self.cuts) and not self.shallow_layers and self.rules is None

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when the plan does not fit a decoder of `num_layers` layers."""
        deepest = max([layer + 1 for layer, _ in self.cuts] + [self.shallow_layers], default=0)
        if deepest > num_layers:
            raise ValueError(f"the plan reaches layer {deepest - 1}, but the model has {num_layers} layers")
        if self.rules is not None and not len(self.rules) == len(self.kv) == num_layers:
            raise ValueError(f"the plan is of a model with {len(self.rules)} layers, this one has {num_layers}")

    def attention(self, layer: int) -> AttentionRule:
        """As recorded; or merge in layer 0 and skip in the other shallow layers."""
        if self.rules is not None:
            return AttentionRule(*self.rules[layer])
        if layer >= self.shallow_layers:
            return AttentionRule()
        return AttentionRule(text="remove" if layer else "merge", visual="remove")

    def cached(self, layer: int) -> KVRule:
        """As recorded; or no visual keys in shallow layers but the sink's in layer 0."""
        if self.rules is not None:
            return KVRule(self.kv[layer], self.rules[layer][2])
        if layer >= self.shallow_layers:
            return KVRule()
        return KVRule("none" if layer else "sink")

    def start(self, num_layers: int) -> Policy:
        """Return the decision maker of one prompt."""
        return _Prompt(dict(self.cuts))


def _kv(kept: int, tokens: int, visual: int) -> str:
    return "all" if kept == tokens else "none" if kept == tokens - visual else "sink"


class _Prompt(Policy):
    def __init__(self, cuts: dict[int, int | tuple[int, ...]]):
        self.cuts = cuts

    def keep(self, layer: int, positions: np.ndarray, measured: None) -> np.ndarray | None:
        if layer not in self.cuts:
            return None
        keep, visual = self.cuts[layer], len(positions)
        if self.filter_layer is None and layer >= 0 and keep:
            self.filter_layer = layer
        if isinstance(keep, tuple):
            missing = np.setdiff1d(keep, positions)
            if len(missing):
                raise ValueError(
                    f"the plan keeps position {missing[0]} after layer {layer}, where this prompt has no visual token; "
                    "replay it on the prompt that it was recorded on, or give a number to 'keep'"
                )
            return np.isin(positions, keep)
        number = min(keep, visual)
        return np.isin(np.arange(visual), np.arange(number) * visual // max(number, 1))
