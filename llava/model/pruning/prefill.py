"""Reading the prompts: packed tokens through the decoder's own layers, pruned on the way, one trace a prompt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from .attention import PeekCall, Peeked, PrefillCall, run_layer
from .cache import RaggedCache
from .config import PruningConfig
from .flops import DecoderShape
from .graphs import LayerGraphs
from .influence import Measurement
from .packed import PackedTokens, Rotary
from .policy import Selection
from .probes import LayerStates, Probe, run
from .trace import Probe as Probed
from .trace import PruningTrace


class Prefill:
    """One prefill of a batch: policies and records of its prompts, from the first layer to the last.

    layers:
        the decoder's layers, called as they are
    cache:
        an empty `RaggedCache` to fill, or None
    rotary:
        maps (x, position_ids) to (cos, sin); needed where the config renumbers positions
    vision:
        what the image encoder left behind (`EncoderStates` by prompt), for a config that asks for it
    attach:
        gives the tokens that enter layer 0 what earlier prompts left (`PrefixStore.attach`), or None
    graphs:
        runs layers as CUDA graphs where it can, or None
    """

    def __init__(
        self,
        layers,
        config: PruningConfig,
        backend: str,
        cache: RaggedCache | None,
        rotary: Rotary | None = None,
        vision: dict[int, Any] | None = None,
        attach: Callable[[PackedTokens], PackedTokens] | None = None,
        graphs: LayerGraphs | None = None,
    ):
        self.layers = layers
        self.config = config
        self.backend = backend
        self.cache = cache
        self.rotary = rotary
        self.vision = vision
        self.attach = attach
        self.graphs = graphs

    def run(self, tokens: PackedTokens, hidden_states: list | None = None, **kwargs) -> PackedTokens:
        """Run all layers and return the surviving tokens, before the final norm; with reuse, those of them that ran.

        hidden_states collects (stream [1, T, D], lengths) at the entry of every layer.
        """
        prompts = range(len(tokens.lengths))
        self.kwargs = kwargs
        self.given, self.shift = tokens.lengths, None
        self.records = [_Record(tokens.lengths[b], tokens.visual_counts[b]) for b in prompts]
        for stage in self.config.stages:
            self.stage, self.policies = stage, [stage.start(len(self.layers)) for _ in prompts]
            tokens = self._prune(-1, tokens, None, self._asked(-1, tokens))
        if self.attach is not None:
            tokens = self.attach(tokens)
        for index, layer in enumerate(self.layers):
            if hidden_states is not None:
                hidden_states.append((tokens.hidden, tokens.lengths))
            rule = self.config.attention(index)
            hidden = self._hidden(index, tokens) if rule.text == "dense" else None
            asked = self._asked(index, tokens)
            tokens = tokens.enter(hidden, _whole(asked))
            call = PrefillCall(tokens, rule, self.backend, hidden)
            output = self._read(layer, tokens, call)
            if self.cache is not None:
                kept = self.cache.store(call.key, call.value, tokens, self.config.cached(index), self.shift, hidden)
            else:
                kept = tokens.lengths
            for b in prompts:
                self.records[b].enter(tokens.lengths[b], tokens.visual_counts[b], rule, kept[b])
            tokens = tokens.after_layer(output)
            tokens = self._prune(index, tokens, call, asked)
        return tokens

    def _read(self, layer, tokens: PackedTokens, call: PrefillCall) -> torch.Tensor:
        """Return what the layer makes of the tokens that it runs: [1, R, D]."""
        if self.graphs is not None and self.graphs.fit(tokens, call, self.kwargs):
            return self.graphs.run(layer, tokens, call, self.kwargs)
        return run_layer(layer, tokens.hidden, tokens.live_rope, call, self.kwargs)

    def _hidden(self, index: int, tokens: PackedTokens) -> np.ndarray | None:
        """Ask every prompt's policy which visual tokens text rows of layer `index` do not read: bool [T]."""
        hidden = np.zeros(len(tokens.visual), bool)
        for b, positions in enumerate(tokens.visual_positions):
            if len(positions) and (chosen := self.policies[b].hidden(index, positions)) is not None:
                hidden[tokens.visual_places[b]] = chosen
        return hidden if hidden.any() else None

    def _peek(self, index: int, tokens: PackedTokens, whole: bool) -> LayerStates:
        """Return query, key and value that layer `index` makes of the tokens; the layer goes no further."""
        tokens = tokens.enter(whole=whole, peek=True)
        call = PeekCall(tokens, self.config.attention(index), self.backend)
        with suppress(Peeked):
            run_layer(self.layers[index], tokens.hidden, tokens.live_rope, call, self.kwargs)
        return _states(tokens, call, whole)

    def _asked(self, index: int, tokens: PackedTokens) -> dict[int, Probe]:
        """Ask every prompt's policy what to measure after layer `index`."""
        return {
            b: probe
            for b, n in enumerate(tokens.visual_counts)
            if n and (probe := self.policies[b].probe(index)) is not None
        }

    def _prune(
        self, index: int, tokens: PackedTokens, call: PrefillCall | None, asked: dict[int, Probe]
    ) -> PackedTokens:
        """Measure what is `asked`, ask every policy what stays after layer `index`; return the next one's tokens."""
        found = {}
        if asked:
            peek = partial(self._peek, index + 1, tokens, _whole(asked))
            if call is None:
                states = LayerStates(tokens, peek=peek, vision=self.vision)
            else:
                states = replace(_states(tokens, call, _whole(asked)), peek=peek)
            found = run(states, asked)
        selections = {
            b: selection
            for b, positions in enumerate(tokens.visual_positions)
            if len(positions) and (selection := self._ask(b, index, positions, found.get(b))) is not None
        }
        return self._apply(selections, tokens) if selections and index + 1 < len(self.layers) else tokens

    def _apply(self, selections: dict[int, Selection], tokens: PackedTokens) -> PackedTokens:
        """Return the tokens that the prompts' selections leave, rewritten and renumbered where they say so."""
        compact = self.stage.positions == "compact"
        changed = [b for b, one in selections.items() if one.rewrite is not None or not one.keep.all()]
        tokens = tokens.loosen(range(len(tokens.lengths)) if compact and changed else changed, entirely=compact)
        mask = np.ones(len(tokens.visual), bool)
        rewritten, states = [], []
        for b, selection in selections.items():
            places = tokens.visual_places[b]
            mask[places] = selection.keep
            if selection.rewrite is not None:
                rewritten.append(places[selection.keep])
                states.append(selection.rewrite(tokens.visual_hidden(b)))
        if rewritten:
            tokens = tokens.rewrite(np.concatenate(rewritten), states)
        if mask.all():
            return tokens
        tokens = tokens.keep(mask)
        if compact:
            tokens = tokens.renumber(self.rotary)
            self.shift = tuple(given - left for given, left in zip(self.given, tokens.lengths, strict=True))
        return tokens

    def _ask(self, b: int, index: int, positions: np.ndarray, measured: Any) -> Selection | None:
        """Ask the policy of prompt `b`, and write down what it measured and chose."""
        policy, record = self.policies[b], self.records[b]
        if isinstance(measured, Measurement):
            record.probed(index, measured)
        undecided = policy.filter_layer is None
        selection = policy.keep(index, positions, measured)
        if selection is None:
            return None
        if not isinstance(selection, Selection):
            selection = Selection(selection)
        chosen = positions[selection.keep]
        if undecided and policy.filter_layer is not None:
            influence = measured.l2[selection.keep] if isinstance(measured, Measurement) else []
            record.filtered(chosen, influence)
        if index + 1 < len(self.layers):
            record.cut(index, chosen)
        return selection

    def traces(self, shape: DecoderShape, dtype: torch.dtype) -> list[PruningTrace]:
        """Return the trace of every prompt, after `run`."""
        return [
            record.trace(shape, dtype.itemsize, policy.filter_layer)
            for record, policy in zip(self.records, self.policies, strict=True)
        ]


def _whole(asked: dict[int, Probe]) -> bool:
    """Whether a probe reads more than the last row of a prompt."""
    return not all(probe.last_row for probe in asked.values())


def _states(tokens: PackedTokens, call: PrefillCall, whole: bool) -> LayerStates:
    """Return what probes see of the layer that `call` was for, every row of it for `whole`."""
    query = call.tokens.all_queries(call.query)
    return LayerStates(tokens.whole() if whole else tokens, query, call.key, call.value, call.scaling)


class _Record:
    def __init__(self, tokens: int, visual: int):
        self.given = (tokens, visual)
        self.tokens, self.visual, self.rules, self.kv, self.probes = [], [], [], [], []
        self.kept, self.influence, self.cuts = [], [], []

    def enter(self, tokens, visual, rule, kv):
        self.tokens.append(tokens)
        self.visual.append(visual)
        self.rules.append(rule)
        self.kv.append(kv)

    def probed(self, layer: int, found: Measurement):
        self.probes.append(Probed(layer, float(found.cosine.min()), float(found.l2.max())))

    def filtered(self, positions, influence):
        self.kept = [int(place) for place in positions]
        self.influence = [float(value) for value in influence]

    def cut(self, layer, positions):
        if self.cuts and self.cuts[-1][0] == layer:
            del self.cuts[-1]
        self.cuts.append((layer, [int(place) for place in positions]))

    def trace(self, shape, itemsize, filter_layer) -> PruningTrace:
        blind = [layer for layer, visual in enumerate(self.visual) if not visual]
        return PruningTrace(
            shape=shape,
            itemsize=itemsize,
            tokens_per_layer=self.tokens,
            visual_per_layer=self.visual,
            rules=self.rules,
            filter_layer=filter_layer,
            kept=self.kept,
            influence=self.influence,
            exit_layer=blind[0] if blind and self.given[1] else None,
            kv_tokens_per_layer=self.kv,
            probes=self.probes,
            cuts=self.cuts,
            given=self.given,
        )
