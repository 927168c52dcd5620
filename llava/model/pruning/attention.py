"""The attention function of pruned layers: each `AttentionRule` as a few variable-length attentions, no T×T weights.

Columns that weigh zero after the softmax are columns whose *value* is zero, and attention merged into one token is
attention to columns that all carry that token's value: both are dense causal attention over edited values. Columns
removed before the softmax leave two smaller attentions: text over text, and visual rows over the text before them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from .kernels import by_segment, choose
from .layers import LayerKind
from .layouts import first_half, merge_passes, text_stretches
from .method import AttentionRule
from .packed import PackedTokens, Segments, upload
from .prefix_cache.prefix import complete
from .reading import MaskedReading, Reading, is_plain
from .softmax import SCALED, Softmax, attend_masked

NAME = "visipruner"
EXTRA = 8
"""Dimensions that a rectified head has more: one for the bias, and none that kernels refuse."""


@dataclass
class PrefillCall:
    """One layer reading the prompts: what it needs to attend, and the states it leaves behind for probe and cache.

    `kind`: what the layer does. `unread`: visual tokens that text rows do not read, bool [T], None for none. `frozen`:
    visual tokens that do not run but are read, None for none; `key` and `value` are of text and visual tokens then.
    `image_starts`: position of each prompt's first visual token as given (0 without any), for rules with `before`.
    `norm`: the layer's, of its input.
    """

    tokens: PackedTokens
    kind: LayerKind
    rule: AttentionRule
    backend: str
    unread: np.ndarray | None = None
    frozen: FrozenTokens | None = None
    image_starts: tuple[int, ...] = ()
    norm: torch.nn.Module | None = None
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


@dataclass(frozen=True, eq=False)
class FrozenTokens:
    """Visual tokens that never run: `tokens` are all of the prompts', `visual` the visual ones, as they came."""

    tokens: PackedTokens
    visual: PackedTokens


@dataclass(frozen=True)
class DecodeCall:
    """One layer reading new tokens: which keys each row may read, bool [B, 1, q, L], None for all; fp32: a bias."""

    mask: torch.Tensor | None
    observe: Callable | None = None


def run_layer(layer, hidden: torch.Tensor, rope: tuple, call, kwargs: dict, cache=None) -> torch.Tensor:
    """Return what a decoder layer makes of `hidden` [B, T, D]; its attention finds `call`, `cache` gets what is new.

    `call`: None for a layer without attention.
    """
    keywords = {"attention_mask": None, "position_embeddings": rope, "past_key_values": cache, **kwargs}
    keywords |= {"use_cache": cache is not None} | ({} if call is None else {"pruning": call})
    frozen = getattr(call, "frozen", None)
    if frozen is not None:
        call.norm = layer.input_layernorm
    if call is not None and layer.training and getattr(layer, "gradient_checkpointing", False):
        with _checkpointed(layer, call, () if frozen is None else (frozen.visual.hidden,)):
            output = layer(hidden, **keywords)
    else:
        output = layer(hidden, **keywords)
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _checkpointed(layer, call, frozen: tuple[torch.Tensor, ...]):
    """Have gradient checkpointing run the layer again with pruned attention, which by then the stack has put back.

    Decisions are not part of a layer, so that the recomputation repeats none. `frozen`: the states of frozen tokens, an
    argument of their own, because reentrant checkpoints pass gradients to arguments alone.
    """
    config, checkpoint = layer.self_attn.config, layer._gradient_checkpointing_func

    def attending(run, hidden, *frozen):
        internal, config._attn_implementation = config._attn_implementation, NAME
        if frozen:
            call.frozen = replace(call.frozen, visual=call.frozen.visual.with_hidden(*frozen))
        try:
            return run(hidden)
        finally:
            config._attn_implementation = internal

    if torch.is_grad_enabled():
        name = "_gradient_checkpointing_func"
        value = lambda run, hidden: checkpoint(partial(attending, run), hidden, *frozen)  # noqa: E731
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
        mask = mask.to(query.dtype) if mask is not None and mask.is_floating_point() else mask
        if pruning.observe is not None:
            pruning.observe(query, key, softmax.scale)
        return decode(query, key, value, mask, softmax), None
    if isinstance(pruning, RecordedCall):
        pruning.states, pruning.softmax = (query, key, value), softmax
        rows = query.shape[2]
        if not softmax.plain:
            seen = torch.ones(1, 1, rows, rows, dtype=torch.bool, device=query.device).tril()
            return attend_masked(query, key, value, seen, softmax), None
        return by_segment(query, key, value, Segments((rows,), (rows,)), True, softmax.scale), None
    key, value = complete(pruning.tokens, query, key, value)
    pruning.query, pruning.key, pruning.value, pruning.softmax = query, key, value, softmax
    if isinstance(pruning, PeekCall):
        raise Peeked
    if pruning.frozen is not None:
        return _with_frozen(module, pruning), None
    reading = _reading(pruning)
    out = attend(reading, pruning.rule)
    if pruning.unread is not None:
        out = _without_unread(out, reading, pruning.unread)
    out = out if pruning.tokens.weights is None else out[..., : query.shape[-1]]
    return _without_rows_before(out, pruning), None


def weighted(query, key, weights: torch.Tensor, softmax: Softmax) -> tuple[torch.Tensor, torch.Tensor]:
    """Return query and key [1, H, T, d + EXTRA] whose scores have log(weights) added, `weights` fp32 [T] of the keys.

    The first extra dimension of a query is 1, that of a key the bias / scale; any kernel then attends rectified.

    Raises:
        ValueError: a layer that caps its scores, whose bias would be capped with them.

    """
    if softmax.cap is not None:
        raise ValueError("rectified attention does not go with layers that cap their scores; leave 'rectify' out")
    bias = F.pad((weights.log() / softmax.scale).to(key.dtype)[:, None], (0, EXTRA - 1))
    key = torch.cat((key, bias.expand(*key.shape[:-1], EXTRA)), -1)
    query = F.pad(query, (0, EXTRA))
    query[..., -EXTRA] = 1
    return query, key


def _reading(call: PrefillCall) -> Reading:
    """Return how the layer's rows read its keys: by the kernel of the backend where that is right, else masked."""
    query, key, value = call.query, call.key, call.value
    if call.tokens.weights is not None:
        query, key = weighted(query, key, call.tokens.weights, call.softmax)
        value = F.pad(value, (0, EXTRA))
    states = (query, key, value, call.tokens, call.softmax)
    if call.softmax.plain and is_plain(call.tokens, call.kind):
        kernel = choose(call.backend, query.device, query.dtype, query.shape[-1])
        return Reading(*states, kernel)
    return MaskedReading(*states, call.kind, call.tokens)


def attend(reading: Reading, rule: AttentionRule) -> torch.Tensor:
    """Attention of packed prompts under `rule`: [1, R, H, d], R the tokens that run (`tokens.live`)."""
    tokens, value = reading.tokens, reading.value
    if rule.text == rule.visual == "dense" or not tokens.visual.any():
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


def _without_rows_before(out: torch.Tensor, call: PrefillCall) -> torch.Tensor:
    """Set the attention output [1, R, H, d] of text rows before the images to 0, where the rule says so."""
    if call.rule.before == "dense":
        return out
    tokens = call.tokens
    rows = tokens.position[tokens.live] < np.repeat(call.image_starts, tokens.tails)
    return out.masked_fill(upload(rows, out.device)[None, :, None, None], 0)


def _with_frozen(module, call: PrefillCall) -> torch.Tensor:
    """Attention [1, R, H, d] of text rows to text and to frozen visual tokens; `call` gets the keys and values of both.

    The attention module makes them as it makes those of text, of the normed states of the visual tokens. Its queries
    are not computed.
    """
    visual = call.frozen.visual
    peek, rope = PeekCall(visual, call.kind, AttentionRule(), call.backend), call.kind.rope(visual.rope)
    with suppress(Peeked), _no_queries(module):
        module.forward(call.norm(visual.hidden), position_embeddings=rope, attention_mask=None, pruning=peek)
    both = [torch.cat(pair, 2) for pair in ((call.key, peek.key), (call.value, peek.value))]
    layout, device = text_stretches(call.tokens, call.frozen.tokens), call.query.device
    order = upload(layout.order, device)
    call.key, call.value = (part.index_select(2, order) for part in both)
    if call.softmax.plain and is_plain(call.frozen.tokens, call.kind):
        read = (part.index_select(2, upload(layout.keys, device)) for part in both)
        kernel = choose(call.backend, device, call.query.dtype, call.query.shape[-1])
        out = kernel(call.query, *read, layout.segments, True, call.softmax.scale)
    else:
        states = (call.query, call.key, call.value, call.tokens, call.softmax)
        out = MaskedReading(*states, call.kind, call.frozen.tokens).everything(call.value)
    return _without_rows_before(out, call)


@contextmanager
def _no_queries(module):
    """Have a query projection return zeros, which cost nothing, where the module has one of its own."""
    project = getattr(module, "q_proj", None)
    width = getattr(project, "out_features", None)
    if width is None:
        yield
        return
    before = vars(project).get("forward")
    project.forward = lambda hidden: hidden.new_zeros(1, 1, width).expand(1, hidden.shape[1], width)
    try:
        yield
    finally:
        if before is None:
            del project.forward
        else:
            project.forward = before


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
