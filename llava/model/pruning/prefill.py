"""Reading the prompts: packed tokens through the decoder's own layers, pruned on the way, one trace a prompt."""

from __future__ import annotations

import numpy as np
import torch

from .attention import PrefillCall
from .cache import RaggedCache
from .config import PruningConfig
from .flops import DecoderShape
from .influence import measure
from .packed import PackedTokens
from .policy import Measurement
from .trace import Probe, PruningTrace


class Prefill:
    """One prefill of a batch: policies and records of its prompts, from the first layer to the last.

    layers:
        the decoder's layers, called as they are
    cache:
        an empty `RaggedCache` to fill, or None
    """

    def __init__(self, layers, config: PruningConfig, backend: str, cache: RaggedCache | None):
        self.layers = layers
        self.config = config
        self.backend = backend
        self.cache = cache

    def run(self, tokens: PackedTokens, hidden_states: list | None = None, **kwargs) -> PackedTokens:
        """Run all layers and return the surviving tokens, before the final norm.

        hidden_states collects (stream [1, T, D], lengths) at the entry of every layer.
        """
        prompts = range(len(tokens.lengths))
        self.policies = [self.config.start(len(self.layers)) for _ in prompts]
        self.records = [_Record() for _ in prompts]
        for index, layer in enumerate(self.layers):
            if hidden_states is not None:
                hidden_states.append((tokens.hidden, tokens.lengths))
            rule = self.config.attention(index)
            call = PrefillCall(tokens, rule, self.backend)
            output = layer(
                tokens.hidden,
                attention_mask=None,
                position_embeddings=tokens.rope,
                past_key_values=None,
                use_cache=False,
                pruning=call,
                **kwargs,
            )
            if self.cache is not None:
                kept = self.cache.store(call.key, call.value, tokens, self.config.cached(index))
            else:
                kept = tokens.lengths
            for b in prompts:
                self.records[b].enter(tokens.lengths[b], tokens.visual_counts[b], rule, kept[b])
            tokens = tokens.with_hidden(output[0] if isinstance(output, tuple) else output)
            chosen = self._decide(index, tokens, call)
            if chosen is not None and index + 1 < len(self.layers):
                tokens = tokens.keep(chosen)
        return tokens

    def _decide(self, index: int, tokens: PackedTokens, call: PrefillCall) -> np.ndarray | None:
        """Ask every prompt's policy which visual tokens stay; bool [T] over all tokens, or None when all do."""
        asked = [b for b, n in enumerate(tokens.visual_counts) if n and self.policies[b].measures(index)]
        found: dict[int, Measurement] = {}
        if asked:
            found = measure(call.query, call.key, call.value, tokens, asked, call.scaling)
        keep = None
        for b, (start, end) in enumerate(tokens.spans):
            if not tokens.visual_counts[b]:
                continue
            if b in found:
                self.records[b].probed(index, found[b])
            policy = self.policies[b]
            undecided = policy.filter_layer is None
            chosen = policy.keep(index, tokens.visual_counts[b], found.get(b))
            if chosen is None:
                continue
            places = start + np.flatnonzero(tokens.visual[start:end])
            if undecided and policy.filter_layer is not None:
                influence = found[b].l2[chosen] if b in found else []
                self.records[b].filtered(tokens.position[places[chosen]], influence)
            if keep is None:
                keep = np.ones(len(tokens.visual), bool)
            keep[places] = chosen
        return keep

    def traces(self, shape: DecoderShape, dtype: torch.dtype) -> list[PruningTrace]:
        """Return the trace of every prompt, after `run`."""
        return [
            record.trace(shape, dtype.itemsize, policy.filter_layer)
            for record, policy in zip(self.records, self.policies, strict=True)
        ]


class _Record:
    def __init__(self):
        self.tokens, self.visual, self.rules, self.kv, self.probes = [], [], [], [], []
        self.kept, self.influence = [], []

    def enter(self, tokens, visual, rule, kv):
        self.tokens.append(tokens)
        self.visual.append(visual)
        self.rules.append(rule)
        self.kv.append(kv)

    def probed(self, layer: int, found: Measurement):
        self.probes.append(Probe(layer, float(found.cosine.min()), float(found.l2.max())))

    def filtered(self, positions, influence):
        self.kept = [int(place) for place in positions]
        self.influence = [float(value) for value in influence]

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
            exit_layer=blind[0] if blind and self.visual[0] else None,
            kv_tokens_per_layer=self.kv,
            probes=self.probes,
        )
