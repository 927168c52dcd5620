"""Prefill: packed tokens run through the decoder's layers and are pruned between them; one trace per prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from .attention import FrozenTokens, PeekCall, Peeked, PrefillCall, run_layer, weighted
from .cache import RaggedCache
from .flops import DecoderShape
from .graphs import LayerGraphs
from .grid import frames_of
from .influence import Measurement
from .layers import LayerKind
from .method import EXIT, AttentionRule, Method, PromptState, Selection
from .packed import PackedTokens, Rotary, upload
from .prefix_cache import prefix
from .probes import LayerStates, Probe, run
from .recurrent import scan
from .trace import ProbeRecord, PruningTrace


class Prefill:
    """One prefill of a batch: states and records of its prompts, from the first layer to the last.

    layers, kinds:
        the decoder's layers, called as they are, and what each of them does
    cache:
        an empty `RaggedCache` to fill, or None
    rotary:
        maps (x, position_ids) to (cos, sin); needed where the config renumbers positions
    vision:
        what the image encoder left behind (`EncoderStates` by prompt), for a config that asks for it
    attach:
        gives the tokens that enter layer 0 what earlier prompts left (`PrefixCache.attach`), or None
    graphs:
        runs layers as CUDA graphs where it can, or None
    first:
        number of the first prompt in its session
    policies:
        after `run`, what the config's method knows of each prompt
    """

    def __init__(
        self,
        layers,
        kinds: Sequence[LayerKind],
        config: Method,
        backend: str,
        cache: RaggedCache | None,
        rotary: Rotary | None = None,
        vision: dict[int, Any] | None = None,
        attach: Callable[[PackedTokens], PackedTokens] | None = None,
        graphs: LayerGraphs | None = None,
        first: int = 0,
    ):
        self.layers, self.kinds = layers, kinds
        self.config = config
        self.backend = backend
        self.cache = cache
        self.rotary = rotary
        self.vision = vision
        self.attach = attach
        self.graphs = graphs
        self.first = first
        self.policies: list[PromptState] = []
        self.hybrid = any(kind.reads == "recurrent" for kind in kinds)
        self.since: dict[int, int] = {}
        self.waiting: dict[int, tuple[int, Probe]] = {}
        self.measured: set[int] = set()

    def run(self, tokens: PackedTokens, hidden_states: list | None = None, **kwargs) -> PackedTokens:
        """Run all layers and return the surviving tokens, before the final norm; with reuse, those of them that ran.

        hidden_states collects (stream [1, T, D], lengths) at the entry of every layer.
        """
        prompts = range(len(tokens.lengths))
        self.kwargs = kwargs
        tokens = self.before(tokens)
        if self.attach is not None:
            tokens = self.attach(tokens)
        tokens, waiting, frozen = self._set_apart(tokens)
        for index, layer in enumerate(self.layers):
            if waiting is not None and index == self.config.enter:
                tokens, waiting = prefix.joined(tokens, waiting), None
            if hidden_states is not None:
                hidden_states.append((tokens.hidden, tokens.lengths))
            recurrent = self.kinds[index].reads == "recurrent"
            rule = AttentionRule() if recurrent else self.config.attention(index)
            unread = self._unread(index, tokens) if rule.text == "dense" and not recurrent else None
            asked = self._asked(index, tokens)
            tokens = prefix.enter(tokens, unread, _whole(asked))
            read = frozen if frozen is not None and not recurrent and self.config.reads(index) else None
            call = PrefillCall(tokens, self.kinds[index], rule, self.backend, unread, read, self.image_starts)
            held = tokens if read is None else read.tokens
            kept = (0,) * len(prompts) if recurrent else held.lengths
            if recurrent:
                output, states = scan(layer, index, tokens, self.kwargs, self.cache is not None)
                if self.cache is not None:
                    self.cache.store_states(states, self.shift)
            else:
                output = self._read(layer, tokens, call)
                if self.cache is not None:
                    kv = self.config.cached(index)
                    kept = self.cache.store(call.key, call.value, held, kv, self.shift, unread, call.kind)
                if self.cache is not None and self.cache.aside is not None:
                    last = upload(np.cumsum(tokens.tails) - 1, call.query.device)
                    asking = call.query.index_select(2, last)[0].transpose(0, 1)[:, :, None]
                    self.cache.choose(asking, call.softmax.scale)
            for b in prompts:
                fixed = 0 if read is None else held.visual_counts[b]
                self.records[b].enter(tokens.lengths[b], tokens.visual_counts[b], rule, kept[b], fixed)
            if index in tokens.added:
                tokens, output = tokens.with_added(index, output)
            tokens = prefix.after_layer(tokens, output)
            tokens = self._prune(index, tokens, call, asked)
        return tokens

    def before(self, tokens: PackedTokens) -> PackedTokens:
        """Return the tokens that the decoder is to read: those that the config's methods leave before layer 0."""
        self.given, self.shift = tokens.lengths, None
        self.image_starts = tuple(int(places[0]) if len(places) else 0 for places in tokens.visual_positions)
        asked = any(stage.reads_frames for stage in self.config.stages)
        grids = [None if tokens.grid is None else tokens.grid[start:end] for start, end in tokens.spans]
        grids = [grid if asked or grid is not None and (grid[:, 1] > 0).any() else None for grid in grids]
        answers = [None if tokens.answers is None else int(tokens.answers[a:b].sum()) for a, b in tokens.spans]
        given = zip(tokens.lengths, tokens.visual_counts, grids, strict=True)
        self.records = [_Record(*one) for one in given]
        for stage in self.config.stages:
            self.stage = stage
            self.policies = [
                PromptState(self.first + b, len(self.layers), len(places), places, answers[b], grids[b])
                for b, places in enumerate(tokens.visual_positions)
            ]
            tokens = self._prune(-1, tokens, None, self._asked(-1, tokens))
        return tokens

    def unchanged(self, tokens: PackedTokens) -> None:
        """Write down that every layer reads `tokens` densely and keeps them all."""
        for record, length, visual in zip(self.records, tokens.lengths, tokens.visual_counts, strict=True):
            for _ in self.layers:
                record.enter(length, visual, AttentionRule(), length)

    def _set_apart(self, tokens: PackedTokens) -> tuple[PackedTokens, PackedTokens | None, FrozenTokens | None]:
        """Return the tokens that layer 0 runs, all tokens while the visual ones wait outside, and frozen ones."""
        if not (self.config.enter or self.config.frozen) or not tokens.visual.any():
            return tokens, None, None
        text = prefix.text_alone(tokens)
        if not self.config.frozen:
            skipped = [part for layer, part in tokens.added.items() if layer < self.config.enter]
            return text, tokens.with_hidden(sum(skipped, start=tokens.hidden)), None
        return text, None, FrozenTokens(tokens, replace(tokens, prefix=None).keep(tokens.visual))

    def _read(self, layer, tokens: PackedTokens, call: PrefillCall) -> torch.Tensor:
        """Return what the layer makes of the tokens that it runs: [1, R, D]."""
        if self.graphs is not None and self.graphs.fit(tokens, call, self.kwargs):
            return self.graphs.run(layer, tokens, call, self.kwargs)
        return run_layer(layer, tokens.hidden, call.kind.rope(tokens.live_rope), call, self.kwargs)

    def _unread(self, index: int, tokens: PackedTokens) -> np.ndarray | None:
        """Ask the method which visual tokens text rows of layer `index` do not read: bool [T], None for none."""
        if type(self.stage).unread is Method.unread:
            return None
        unread = np.zeros(len(tokens.visual), bool)
        for b, count in enumerate(tokens.visual_counts):
            if count and (chosen := self.stage.unread(index, self.policies[b])) is not None:
                unread[tokens.visual_places[b]] = chosen
        return unread if unread.any() else None

    def _peek(self, index: int, tokens: PackedTokens, whole: bool) -> LayerStates:
        """Return query, key and value that layer `index` makes of the tokens; the layer goes no further."""
        tokens = prefix.enter(tokens, queries=whole, peek=True)
        kind = self.kinds[index]
        call = PeekCall(tokens, kind, self.config.attention(index), self.backend)
        with suppress(Peeked):
            run_layer(self.layers[index], tokens.hidden, kind.rope(tokens.live_rope), call, self.kwargs)
        return _states(tokens, call, whole)

    def _asked(self, index: int, tokens: PackedTokens) -> dict[int, Probe]:
        """Ask the method what to measure of every prompt after layer `index`, and return what is measured there.

        A measurement of attention waits for the next layer that has attention; a newer one takes its place.
        """
        asked = {b: self.stage.probe(index, self.policies[b]) for b, n in enumerate(tokens.visual_counts) if n}
        asked = {b: probe for b, probe in asked.items() if probe is not None}
        self.since = dict.fromkeys(asked, index)
        if index < 0 or not self.hybrid:
            return asked
        self.waiting |= {b: (index, probe) for b, probe in asked.items()}
        due = {b: one for b, one in self.waiting.items() if tokens.visual_counts[b] and self._attends(index, one[1])}
        for b, (asked_at, probe) in self.waiting.items():
            if asked_at == index and b not in due and b not in self.measured:
                self._check_attends(index, probe)
        self.measured |= due.keys()
        self.since = {b: asked_at for b, (asked_at, _) in due.items()}
        self.waiting = {b: one for b, one in self.waiting.items() if b not in due}
        return {b: probe for b, (_, probe) in due.items()}

    def _attends(self, index: int, probe: Probe) -> bool:
        """Whether the layer that `probe` measures after layer `index` has what it needs."""
        if not probe.reads_attention:
            return True
        index += probe.ahead
        return index < len(self.kinds) and self.kinds[index].reads != "recurrent"

    def _check_attends(self, index: int, probe: Probe) -> None:
        """Raise `ValueError` where attention is asked for after layer `index`, and no layer from there on has any."""
        if not any(self._attends(later, probe) for later in range(index, len(self.kinds))):
            able = [number for number, kind in enumerate(self.kinds) if kind.reads != "recurrent"]
            raise ValueError(
                f"method {self.stage.method!r} measures attention after layer {index}, but from there on all layers "
                f"are recurrent and have none; layers with attention: {', '.join(map(str, able))}"
            )

    def _prune(
        self, index: int, tokens: PackedTokens, call: PrefillCall | None, asked: dict[int, Probe]
    ) -> PackedTokens:
        """Measure what is `asked`, ask the method what stays after layer `index`; return the next one's tokens."""
        measured = {}
        if asked:
            peek = partial(self._peek, index + 1, tokens, _whole(asked))
            if call is None:
                states = LayerStates(tokens, peek=peek, vision=self.vision)
            else:
                states = replace(_states(tokens, call, _whole(asked)), peek=peek)
            measured = run(states, asked)
        selections = {
            b: selection
            for b, count in enumerate(tokens.visual_counts)
            if count and (selection := self._select(b, index, measured.get(b))) is not None
        }
        self.waiting = {b: one for b, one in self.waiting.items() if b not in selections}
        return self._apply(selections, tokens) if selections and index + 1 < len(self.layers) else tokens

    def _apply(self, selections: dict[int, Selection], tokens: PackedTokens) -> PackedTokens:
        """Return the tokens that the prompts' selections leave, rewritten and renumbered where they say so."""
        compact = self.stage.positions == "compact"
        changed = [b for b, one in selections.items() if one.rewrite is not None or not one.keep.all()]
        every = range(len(tokens.lengths))
        tokens = prefix.recompute(tokens, every if compact and changed else changed, entirely=compact)
        mask, position, similar = np.ones(len(tokens.visual), bool), tokens.position, tokens
        rewritten, states = [], []
        for b, selection in selections.items():
            places = tokens.visual_places[b]
            mask[places] = selection.keep
            if selection.rewrite is not None:
                rewritten.append(places[selection.keep])
                states.append(selection.rewrite(tokens.visual_hidden(b)))
            if selection.origin is not None:
                position = position.copy()
                position[places[selection.keep]] = tokens.position[places[selection.origin]]
        if rewritten:
            tokens = tokens.rewrite(np.concatenate(rewritten), states)
        if position is not tokens.position:
            tokens = replace(tokens, position=position, _memo={})
        cut = not mask.all()
        if cut and any(stage.rectify for stage in self.config.stages):
            tokens = replace(tokens, weights=standing_for(tokens, mask, similar))
        if cut:
            tokens = tokens.keep(mask)
        for prompt, positions in zip(self.policies, tokens.visual_positions, strict=True):
            prompt.positions = positions
        if cut and compact:
            tokens = tokens.renumber(self.rotary)
            self.shift = tuple(given - left for given, left in zip(self.given, tokens.lengths, strict=True))
        return tokens

    def _select(self, b: int, index: int, measured: Any) -> Selection | None:
        """Ask the method which visual tokens of prompt `b` stay, and write down what it measured and chose."""
        prompt, record = self.policies[b], self.records[b]
        if isinstance(measured, Measurement):
            record.probed(index, measured)
        if self.waiting.get(b, (None,))[0] == index:
            return None
        asked_at = self.since.get(b, index)
        answer = self.stage.select(asked_at, prompt, measured)
        if asked_at != index and self.stage.select(index, prompt, None) is EXIT:
            answer = EXIT
        if answer is None:
            return None
        if answer is EXIT:
            selection = Selection(np.zeros(len(prompt.positions), bool))
        else:
            selection = answer if isinstance(answer, Selection) else Selection(answer)
            _check_selection(selection.keep, self.stage, prompt)
        chosen = prompt.positions[selection.keep]
        if prompt.filter_layer is None and index >= 0 and answer is not EXIT:
            prompt.filter_layer = index
            record.filtered(chosen, measured.l2[selection.keep] if isinstance(measured, Measurement) else [])
        if index + 1 < len(self.layers):
            record.cut(index, chosen)
        return selection

    def traces(self, shape: DecoderShape, dtype: torch.dtype) -> list[PruningTrace]:
        """Return the trace of every prompt, after `run`."""
        return [
            record.trace(shape, dtype.itemsize, prompt.filter_layer)
            for record, prompt in zip(self.records, self.policies, strict=True)
        ]


def _check_selection(keep: np.ndarray, method: Method, prompt: PromptState) -> None:
    """Raise `ValueError` for what `select` must not return."""
    visual_tokens = len(prompt.positions)
    if not isinstance(keep, np.ndarray) or keep.dtype != bool or keep.shape != (visual_tokens,):
        got = f"{keep.dtype} {list(keep.shape)}" if hasattr(keep, "shape") else type(keep).__name__
        raise ValueError(
            f"select() of method {method.method!r} must return a numpy array bool [{visual_tokens}], True for visual "
            f"tokens that stay, got {got}"
        )


def _whole(asked: dict[int, Probe]) -> bool:
    """Whether a probe reads more than the last row of a prompt."""
    return not all(probe.last_row for probe in asked.values())


def _states(tokens: PackedTokens, call: PrefillCall, whole: bool) -> LayerStates:
    """Return what probes see of the layer that `call` was for, every row of it for `whole`."""
    query, key = prefix.all_queries(call.tokens, call.query), call.key
    if call.tokens.weights is not None:
        query, key = weighted(query, key, call.tokens.weights, call.softmax)
    return LayerStates(prefix.whole(tokens) if whole else tokens, query, key, call.value, call.softmax, call.kind)


@torch.no_grad()
def standing_for(tokens: PackedTokens, mask: np.ndarray, states: PackedTokens) -> torch.Tensor:
    """Return how many tokens each one stands for once those where `mask` (bool [T]) is False are gone: fp32 [T].

    states: the tokens in the states that say which kept one a dropped one resembles, before any is rewritten
    """
    device = tokens.hidden.device
    weights = torch.ones(len(mask), device=device) if tokens.weights is None else tokens.weights.clone()
    for b, places in enumerate(tokens.visual_places):
        kept = mask[places]
        if kept.all() or not kept.any():
            continue
        unit = torch.nn.functional.normalize(states.visual_hidden(b).float(), dim=-1)
        stays, goes = (upload(np.flatnonzero(part), device) for part in (kept, ~kept))
        nearest = (unit.index_select(0, goes) @ unit.index_select(0, stays).T).argmax(1)
        every = upload(places, device)
        weights.index_add_(0, every[stays][nearest], weights[every[goes]])
    return weights


class _Record:
    def __init__(self, tokens: int, visual: int, grid: np.ndarray | None):
        self.given = (tokens, visual)
        self.frames = [] if grid is None else frames_of(grid)
        self.tokens, self.visual, self.frozen, self.rules, self.kv, self.probes = [], [], [], [], [], []
        self.kept, self.influence, self.cuts = [], [], []

    def enter(self, tokens, visual, rule, kv, frozen=0):
        self.tokens.append(tokens)
        self.visual.append(visual)
        self.frozen.append(frozen)
        self.rules.append(rule)
        self.kv.append(kv)

    def probed(self, layer: int, measured: Measurement):
        self.probes.append(ProbeRecord(layer, float(measured.cosine.min()), float(measured.l2.max())))

    def filtered(self, positions, influence):
        self.kept = [int(place) for place in positions]
        self.influence = [float(value) for value in influence]

    def cut(self, layer, positions):
        if self.cuts and self.cuts[-1][0] == layer:
            del self.cuts[-1]
        self.cuts.append((layer, sorted(int(place) for place in positions)))

    def trace(self, shape, itemsize, filter_layer) -> PruningTrace:
        seen = [visual + frozen > 0 for visual, frozen in zip(self.visual, self.frozen, strict=True)]
        blind = len(seen) - (seen[::-1].index(True) if any(seen) else len(seen))
        return PruningTrace(
            shape=shape,
            itemsize=itemsize,
            tokens_per_layer=self.tokens,
            visual_per_layer=self.visual,
            rules=self.rules,
            filter_layer=filter_layer,
            kept=self.kept,
            influence=self.influence,
            exit_layer=blind if blind < len(seen) and self.given[1] else None,
            kv_tokens_per_layer=self.kv,
            probes=self.probes,
            cuts=self.cuts,
            given=self.given,
            frozen_per_layer=self.frozen if any(self.frozen) else [],
            frames=self.frames,
        )
