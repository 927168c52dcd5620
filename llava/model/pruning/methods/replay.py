"""Replay a plan: a recorded trace, or filter layer, kept tokens and exit layer as given. Nothing is measured.

For timing (without the cost of measuring) and for running one prompt's decisions on other weights. A plan that keeps
positions repeats them and needs a prompt that has visual tokens there; a plan that keeps a number spreads them evenly
over the visual tokens. Merged states (SparseVLM, VisionZip) are not recorded: their plans replay with the same numbers
of tokens, each with its own state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from ..method import EXIT, AtLeast, AttentionRule, Count, KVRule, Method, PromptState, Selection, TextRows, VisualRows
from .ranking import check_exit


class Cut(NamedTuple):
    """After which layer (−1: before the decoder) tokens are dropped, and what stays: a number, or positions."""

    layer: Annotated[int, AtLeast(-1)]
    keep: Count | tuple[Count, ...]


class Rule(NamedTuple):
    """An `AttentionRule`."""

    text: TextRows
    visual: VisualRows
    sink: Count
    before: Literal["dense", "zero"] = "dense"


@dataclass(frozen=True)
class Replay(Method, name="replay"):
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
        of every layer, as recorded: [text, visual, sink], and "zero" for `before`, see `AttentionRule`; and `all`,
        `none` or `sink`
    enter, read:
        first layer that runs visual tokens; or the layers that read them where none runs them (see `schedule`)
    """

    filter_layer: Annotated[int, AtLeast(-1)] | None = None
    keep: Count | tuple[Count, ...] | None = None
    exit_layer: Count | None = None
    shallow_layers: Count = 0
    trace: Mapping[str, Any] | None = None
    cuts: tuple[Cut, ...] | None = None
    rules: tuple[Rule, ...] | None = None
    kv: tuple[Literal["all", "none", "sink"], ...] | None = None
    enter: Count = 0
    read: tuple[Count, ...] | None = None

    def check(self) -> None:
        short = self.filter_layer is not None or self.keep is not None or self.exit_layer is not None
        if short + (self.trace is not None) + (self.cuts is not None) != 1:
            raise ValueError(
                "method 'replay' needs one of 'trace', 'cuts', or 'filter_layer' and 'keep' (or 'exit_layer' alone)"
            )
        if self.trace is not None:
            self._read_trace()
        elif short:
            self._read_short()
        for (layer, _), (later, _) in pairwise(self.cuts):
            if later <= layer:
                raise ValueError(f"'cuts' must be an integer ≥ {layer + 1}, got {later} after {layer}")
        if self.shallow_layers and self.rules is not None:
            raise ValueError("'shallow_layers' and recorded 'rules' exclude each other; leave one out")
        if self.rules is not None and self.kv is None:
            self._set(kv=("all",) * len(self.rules))

    def _set(self, **settings) -> None:
        for key, value in settings.items():
            object.__setattr__(self, key, value)

    def _read_short(self) -> None:
        if (self.filter_layer is None) != (self.keep is None):
            raise ValueError("method 'replay' needs 'filter_layer' and 'keep' together")
        check_exit(self.exit_layer, 0 if self.filter_layer is None else self.filter_layer + 2)
        cuts = [] if self.filter_layer is None else [Cut(self.filter_layer, self.keep)]
        cuts += [] if self.exit_layer is None else [Cut(self.exit_layer - 1, 0)]
        self._set(cuts=tuple(cuts), filter_layer=None, keep=None, exit_layer=None)

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
        visual, frozen = trace.get("visual_per_layer", ()), trace.get("frozen_per_layer") or ()
        if any(visual):
            self._set(enter=next(layer for layer, count in enumerate(visual) if count))
        if frozen:
            cuts = [cut for cut in cuts if cut[0] < 0]
            self._set(read=tuple(layer for layer, count in enumerate(frozen) if count))
        self._set(cuts=tuple(Cut(layer, tuple(keep)) for layer, keep in cuts), trace=None)
        if "rules" not in trace or all(AttentionRule(**rule).dense for rule in trace["rules"]):
            return
        kept, tokens, visual = (np.array(trace[f"{name}_per_layer"]) for name in ("kv_tokens", "tokens", "visual"))
        read = np.array(frozen or 0)
        self._set(
            rules=tuple(Rule(**rule) for rule in trace["rules"]),
            kv=tuple(_kv(*numbers) for numbers in zip(kept, tokens + read, visual + read, strict=True)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as `cuts`, JSON-ready."""
        settings = super().to_dict()
        settings["cuts"] = [[layer, list(keep) if isinstance(keep, tuple) else keep] for layer, keep in self.cuts]
        if self.rules is not None:
            settings["rules"] = [list(rule)[: 3 if rule.before == "dense" else 4] for rule in self.rules]
        return {key: value for key, value in settings.items() if key != "enter" or value}

    @property
    def before_decoder(self) -> bool:
        """True where the plan ends before layer 0."""
        whole = not (self.enter or self.frozen or self.shallow_layers) and self.rules is None
        return whole and all(layer < 0 for layer, _ in self.cuts)

    @property
    def frozen(self) -> bool:
        """Whether no layer runs visual tokens."""
        return self.read is not None

    def reads(self, layer: int) -> bool:
        return layer in self.read

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when the plan does not fit a decoder of `num_layers` layers."""
        deepest = max([layer + 1 for layer, _ in self.cuts] + [self.shallow_layers, self.enter, *(self.read or ())])
        if deepest > num_layers:
            raise ValueError(f"the plan reaches layer {deepest - 1}, but the model has {num_layers} layers")
        if self.rules is not None and not len(self.rules) == len(self.kv) == num_layers:
            raise ValueError(f"the plan is of a model with {len(self.rules)} layers, this one has {num_layers}")

    def attention(self, layer: int) -> AttentionRule:
        if self.rules is not None:
            return AttentionRule(*self.rules[layer])
        if layer >= self.shallow_layers:
            return AttentionRule()
        return AttentionRule(text="remove" if layer else "merge", visual="remove")

    def cached(self, layer: int) -> KVRule:
        if self.rules is not None:
            return KVRule(self.kv[layer], self.rules[layer][2])
        if layer >= self.shallow_layers:
            return KVRule()
        return KVRule("none" if layer else "sink")

    def select(self, layer: int, prompt: PromptState, measured: None) -> np.ndarray | Selection | None:
        keep, visual = dict(self.cuts).get(layer), len(prompt.positions)
        if keep is None:
            return None
        if not keep:
            return EXIT
        if isinstance(keep, tuple):
            missing = np.setdiff1d(keep, prompt.positions)
            if len(missing):
                raise ValueError(
                    f"the plan keeps position {missing[0]} after layer {layer}, where this prompt has no visual token; "
                    "replay it on the prompt that it was recorded on, or give a number to 'keep'"
                )
            return np.isin(prompt.positions, keep)
        number = min(keep, visual)
        return np.isin(np.arange(visual), np.arange(number) * visual // max(number, 1))

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        (layer, _), *later = self.cuts
        return replace(self, cuts=(Cut(layer, round(share * visual_tokens)), *later))


def _kv(kept: int, tokens: int, visual: int) -> str:
    return "all" if kept == tokens else "none" if kept == tokens - visual else "sink"
