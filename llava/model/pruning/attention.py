"""The attention function of pruned layers: each `AttentionRule` as a few variable-length attentions, no T×T weights.

Columns that weigh zero after the softmax are columns whose *value* is zero, and attention merged into one token is
attention to columns that all carry that token's value: both are dense causal attention over edited values. Columns
removed before the softmax leave two smaller attentions: text over text, and visual rows over the text before them.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from .kernels import by_segment, choose
from .layers import LayerKind
from .layouts import first_half, merge_passes
from .method import AttentionRule
from .packed import PackedTokens, Segments, upload
from .prefix_cache.prefix import complete
from .reading import MaskedReading, Reading, is_plain
from .softmax import SCALED, Softmax, attend_masked

NAME = "visipruner"


@dataclass
class PrefillCall:
    """One layer reading the prompts: what it needs to attend, and the states it leaves behind for probe and cache.

    `kind`: what the layer does. `unread`: visual tokens that text rows do not read, bool [T], None for none.
    """

    tokens: PackedTokens
    kind: LayerKind
    rule: AttentionRule
    backend: str
    unread: np.ndarray | None = None
    query: torch.Tensor | None = None
    key: torch.Tensor | None = None
    value: torch.Tensor | None = None
    softmax: Softmax = SCALED


class PeekCall(PrefillCall):
    """A layer asked for its query, key and value alone: it raises `Peeked` where it would attend."""


class Peeked(Exception):
    """Control flow: a `PeekCall` has what it wanted."""


@dataclass
class RecordedCall:
    """One layer reading a single stream densely, for a CUDA graph: `states` are its query, key and value."""

    states: tuple[torch.Tensor, ...] = ()
    softmax: Softmax = SCALED


@dataclass(frozen=True)
class DecodeCall:
    """One layer reading new tokens: which cached and new keys each row may read, bool [B, 1, q, L], None for all."""

    mask: torch.Tensor | None


def run_layer(layer, hidden: torch.Tensor, rope: tuple, call, kwargs: dict, cache=None) -> torch.Tensor:
    """Return what a decoder layer makes of `hidden` [B, T, D]; its attention finds `call`, `cache` gets what is new."""
    keywords = {"attention_mask": None, "position_embeddings": rope, "past_key_values": cache, **kwargs}
    keywords |= {"use_cache": cache is not None, "pruning": call}
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        with _checkpointed(layer):
            output = layer(hidden, **keywords)
    else:
        output = layer(hidden, **keywords)
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _checkpointed(layer):
    """Have gradient checkpointing run the layer again with pruned attention, which by then the stack has put back.

    Decisions are not part of a layer, so that the recomputation repeats none.
    """
    config, checkpoint = layer.self_attn.config, layer._gradient_checkpointing_func

    def attending(run, *args):
        internal, config._attn_implementation = config._attn_implementation, NAME
        try:
            return run(*args)
        finally:
            config._attn_implementation = internal

    if torch.is_grad_enabled():
        name, value = "_gradient_checkpointing_func", lambda run, *args: checkpoint(partial(attending, run), *args)
    else:
        name, value = "gradient_checkpointing", False
    before = getattr(layer, name)
    setattr(layer, name, value)
    try:
        yield
    finally:
        setattr(layer, name, before)


def pruned_attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling=None,
    dropout=0.0,
    *,
    softcap=None,
    s_aux=None,
    pruning=None,
    **kwargs,
):
    """Attend as transformers' attention interface asks: query [B, H, q, d], key and value [B, Hkv, L, d].

    Returns ([B, q, H, d], None). `softcap`, `s_aux`: cap and sinks of `Softmax`. `pruning`: the call (`PrefillCall` and
    the like) that the patched forward sends along.
    """
    if pruning is None:
        raise RuntimeError(f"the attention implementation {NAME!r} works inside `with prune(model, config)` only")
    softmax = Softmax(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    if isinstance(pruning, DecodeCall):
        mask = None if pruning.mask is None else pruning.mask.to(query.device)  # layers may lie on several devices
        return decode(query, key, value, mask, softmax), None
    if isinstance(pruning, RecordedCall):
        pruning.states, pruning.softmax = (query, key, value), softmax
        stream = Segments((query.shape[2],), (query.shape[2],))
        return by_segment(query, key, value, stream, True, softmax.scale), None
    key, value = complete(pruning.tokens, query, key, value)
    pruning.query, pruning.key, pruning.value, pruning.softmax = query, key, value, softmax
    if isinstance(pruning, PeekCall):
        raise Peeked
    reading = _reading(pruning)
    out = attend(reading, pruning.rule)
    return out if pruning.unread is None else _without_unread(out, reading, pruning.unread), None


def _reading(call: PrefillCall) -> Reading:
    """Return how the layer's rows read its keys: by the kernel of the backend where that is right, else masked."""
    states = (call.query, call.key, call.value, call.tokens, call.softmax)
    if call.softmax.plain and is_plain(call.tokens, call.kind):
        kernel = choose(call.backend, call.query.device, call.query.dtype, call.query.shape[-1])
        return Reading(*states, kernel)
    return MaskedReading(*states, call.kind, call.tokens)


def attend(reading: Reading, rule: AttentionRule) -> torch.Tensor:
    """Attention of packed prompts under `rule`: [1, R, H, d], R the tokens that run (`tokens.live`)."""
    tokens, value = reading.tokens, reading.value
    if rule.dense or not tokens.visual.any():
        return reading.everything(value)
    device, seeing = value.device, tokens.live_visual.any()

    def without(name, columns):
        return reading.everything(value.masked_fill(tokens.tensor(name, columns, device).view(1, 1, -1, 1), 0))

    out = {}
    for kind in {rule.text, rule.visual if seeing else rule.text} & {"dense", "zero", "half"}:
        match kind:
            case "dense":
                out[kind] = reading.everything(value)
            case "zero":
                out[kind] = without("visual", lambda: tokens.visual)
            case "half":
                out[kind] = without("half", lambda: first_half(tokens))
    if rule.text == "merge":
        out["merge"] = _merge(reading.everything, value, tokens, rule.sink)
    if rule.text == "remove":
        rows = tokens.tensor("text rows", lambda: (~tokens.live_visual).nonzero()[0], device)
        out["remove"] = reading.text(rows)
    if not seeing:
        return out[rule.text]
    if rule.visual == "remove":
        chosen = tokens.tensor("visual rows", lambda: tokens.live_visual.nonzero()[0], device)
        alone = reading.visual(chosen)
    if rule.text == rule.visual == "remove":
        text = out["remove"]
        result = text.new_empty(1, len(rows) + len(chosen), *text.shape[2:])
        return result.index_copy(1, rows, text).index_copy(1, chosen, alone)
    if rule.text == "remove":
        return out[rule.visual].index_copy(1, rows, out["remove"])
    if rule.visual == "remove":
        return out[rule.text].index_copy(1, chosen, alone)
    if rule.text == rule.visual:
        return out[rule.text]
    visual = tokens.tensor("live visual", lambda: tokens.live_visual, device)[None, :, None, None]
    return torch.where(visual, out[rule.visual], out[rule.text])


def _without_unread(out: torch.Tensor, reading: Reading, unread: np.ndarray) -> torch.Tensor:
    """Replace the text rows of `out` [1, R, H, d] by attention over the stream without its unread tokens."""
    rows, seen = reading.without(unread)
    text = np.flatnonzero(~reading.tokens.live_visual[rows])
    return out.index_copy(1, upload(rows[text], out.device), seen.index_select(1, upload(text, out.device)))


def _merge(causal, value, tokens: PackedTokens, sink: int):
    result = None
    for number, step in enumerate(merge_passes(tokens, sink)):
        source = tokens.tensor(f"merge source {sink} {number}", lambda step=step: step.source, value.device)
        merged = causal(value.index_select(2, source))
        if result is None:
            result = merged
        else:
            rows = tokens.tensor(f"merge rows {sink} {number}", lambda step=step: step.rows[tokens.live], value.device)
            result = torch.where(rows[None, :, None, None], merged, result)
    return result


def decode(query, key, value, mask, softmax: Softmax) -> torch.Tensor:
    """Attention of new tokens to a layer's cache: query [B, H, q, d], key and value [B, Hkv, L, d] → [B, q, H, d]."""
    if not softmax.plain:
        return attend_masked(query, key, value, mask, softmax)
    groups, new = query.shape[1] // key.shape[1], query.shape[2]
    if groups > 1 and new == 1:
        # one query: its heads are rows over the shared keys, so that the cache is not repeated
        query = query.view(query.shape[0], key.shape[1], groups, -1)
    elif groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=softmax.scale)
    return out.reshape(out.shape[0], -1, new, out.shape[-1]).transpose(1, 2)


AttentionInterface.register(NAME, pruned_attention)
