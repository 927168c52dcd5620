"""What stands in for a decoder stack's `forward` while it is pruned: prompts packed and pruned, new tokens decoded."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Hashable
from functools import partial

import torch
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .attention import NAME, DecodeCall, run_layer
from .cache import RaggedCache
from .families import Family
from .flops import DecoderShape
from .graphs import LayerGraphs
from .method import Method as PruningConfig
from .method import PromptState
from .packing import pack, unpack
from .prefill import Prefill
from .prefix_cache import PrefixStore
from .trace import PruningTrace
from .vision import EncoderHook


class PrunedForward:
    """The forward of a model's decoder stack under one config; weights and layers are the stack's own.

    family:
        the adapter of the model's family, which knows where the stack is
    config:
        resolved for the stack's depth
    visual_mask:
        bool [B, T] for all prompts that come, or None where each call brings its own
    backend:
        attention kernel of packed prompts
    prefixes:
        what earlier prompts left, or None
    graphs:
        recorded layers, or None
    watch:
        what keeps an eye on the image encoder, or None
    traces:
        one `PruningTrace` per prompt of every prefill so far
    """

    def __init__(
        self,
        model: torch.nn.Module,
        family: Family,
        config: PruningConfig,
        visual_mask: torch.Tensor | None,
        backend: str,
        prefixes: PrefixStore | None,
        graphs: LayerGraphs | None,
        watch: EncoderHook | None,
    ):
        self.model = model
        self.family = family
        self.decoder = family.decoder(model)
        self.config = config
        self.visual_mask = visual_mask
        self.backend = backend
        self.prefixes = prefixes
        self.graphs = graphs
        self.watch = watch
        self.traces: list[PruningTrace] = []
        self.policies: list[PromptState] = []
        self._text_config = self.decoder.config
        self._lock = threading.Lock()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        visual_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Stand in for the decoder stack's `forward`: prefill packed and pruned, or decode on a ragged cache.

        Raises:
            ValueError: inputs that pruning cannot serve (no visual mask, foreign caches, attention weights).
            RuntimeError: two threads run the model at the same moment.

        """
        if output_hidden_states is None:
            output_hidden_states = self._text_config.output_hidden_states
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if output_attentions:
            raise ValueError("attention weights are never formed while pruning; run without output_attentions")
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("two threads run one pruned model at the same moment; give each a copy of the model")
        internal = self._text_config._attn_implementation
        try:
            if inputs_embeds is None:
                inputs_embeds = self.decoder.embed_tokens(input_ids)
            if position_ids is not None:
                position_ids = self.family.positions(position_ids)
            self._text_config._attn_implementation = NAME
            if isinstance(past_key_values, RaggedCache):
                return self._decode(
                    inputs_embeds,
                    attention_mask,
                    position_ids,
                    past_key_values,
                    visual_mask,
                    output_hidden_states,
                    kwargs,
                )
            if past_key_values is not None and type(past_key_values) is not DynamicCache:
                raise ValueError(
                    f"pruning makes its own cache and takes the place of a DynamicCache, not of a "
                    f"{type(past_key_values).__name__}; leave cache_implementation and past_key_values out"
                )
            if past_key_values is not None and past_key_values.get_seq_length():
                raise ValueError(
                    "past_key_values holds a prompt that was read without pruning; "
                    "continue it outside `with prune(…)`, or read the whole prompt inside"
                )
            if use_cache is None:
                use_cache = self._text_config.use_cache
            return self._prefill(
                inputs_embeds, attention_mask, position_ids, use_cache, visual_mask, output_hidden_states, kwargs
            )
        finally:
            self._text_config._attn_implementation = internal
            self._lock.release()

    def _prefill(self, embeds, attention_mask, position_ids, use_cache, visual_mask, want_hidden, kwargs):
        visual_mask = self._mask_for(embeds, visual_mask)
        tokens, following = pack(embeds, attention_mask, position_ids, visual_mask, self._rope)
        cache = RaggedCache(embeds.shape[1], following) if use_cache else None
        layers = self.decoder.layers[: self._text_config.num_hidden_layers]
        vision = None if self.watch is None else self.watch.find(tokens)
        attach = None if self.prefixes is None else self._attach(want_hidden)
        graphs = None if self.graphs is None or want_hidden else self._ready_graphs()
        prefill = Prefill(
            layers, self.config, self.backend, cache, self._rope, vision, attach, graphs, len(self.traces)
        )
        states = [] if want_hidden else None
        tokens = prefill.run(tokens, states, **kwargs)
        last = unpack(self.decoder.norm(tokens.hidden), tokens.tails)
        self.policies[len(self.traces) :] = prefill.policies  # whoever empties the traces empties these
        self.traces += prefill.traces(DecoderShape.of(self._text_config), embeds.dtype)
        hidden = None
        if want_hidden:
            hidden = (*(unpack(stream, lengths) for stream, lengths in states), last)
        return BaseModelOutputWithPast(last_hidden_state=last, past_key_values=cache, hidden_states=hidden)

    def _decode(self, embeds, attention_mask, position_ids, cache: RaggedCache, visual_mask, want_hidden, kwargs):
        batch, new = embeds.shape[:2]
        if batch != len(cache.next_position):
            raise ValueError(f"the cache holds {len(cache.next_position)} prompts, the new tokens are of {batch}")
        if new > 1 and visual_mask is not None and visual_mask.any():
            raise ValueError("an image in the middle of a pruned conversation: read the whole prompt again instead")
        if new > 1 and attention_mask is not None and not attention_mask[:, -new:].all():
            raise ValueError("new tokens of a pruned prompt cannot be padded; continue the prompts one by one")
        if position_ids is None:
            position_ids = cache.next_position[:, None] + torch.arange(new, device=embeds.device)
        ropes = cache.ropes(position_ids, partial(self._rope, embeds))
        masks = cache.masks(new)
        hidden, states = embeds, []
        for layer, mask, rope in zip(self.decoder.layers, masks, ropes, strict=False):
            if want_hidden:
                states.append(hidden)
            hidden = run_layer(layer, hidden, rope, DecodeCall(mask), kwargs, cache)
        cache.advance(new)
        last = self.decoder.norm(hidden)
        collected = (*states, last) if want_hidden else None
        return BaseModelOutputWithPast(last_hidden_state=last, past_key_values=cache, hidden_states=collected)

    def _attach(self, want_hidden: bool):
        """Return what gives a prefill the prefixes that are known; None, and a warning, where it has to run whole."""
        obstacle = None
        if self.decoder.training:
            obstacle = "the model is in training mode"
        elif torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.decoder.parameters()):
            obstacle = "gradients are enabled, which reused states have none of: use torch.no_grad()"
        elif want_hidden:
            obstacle = "hidden states of all tokens are asked for"
        if obstacle is None:
            return partial(self.prefixes.attach, stamp=(repr(self.config), self.backend, _stamp(self.decoder)))
        say_no_reuse(obstacle)
        return None

    def _ready_graphs(self) -> LayerGraphs | None:
        """Return the recorded layers; None where their outputs would not be what the layers' own are."""
        autocast = torch.is_autocast_enabled(next(self.decoder.parameters()).device.type)
        if self.decoder.training or torch.is_grad_enabled() or autocast:
            return None
        return self.graphs.ready(self.decoder)

    def _rope(self, hidden, position_ids):
        """Return (cos, sin) of the positions that pruning counted itself, or that the model gave."""
        return self.decoder.rotary_emb(hidden, self.family.positions(position_ids))

    def _mask_for(self, embeds, visual_mask):
        """Return which tokens of the prompts are visual, bool [B, T]; never guess that none are."""
        batch, width = embeds.shape[:2]
        given = self.visual_mask
        if given is not None:
            if batch % given.shape[0] or width != given.shape[1]:
                raise ValueError(
                    f"visual_mask is for prompts of shape {list(given.shape)}, the model reads {[batch, width]} "
                    "(generate needs use_cache=True: without a cache every step reads a longer prompt)"
                )
            return given.to(embeds.device).repeat_interleave(batch // given.shape[0], 0)
        if visual_mask is None:
            raise ValueError(
                f"no visual mask reached the decoder of {type(self.model).__name__}, so that nothing would be pruned; "
                "pass images through the model, or prune(model, config, visual_mask=mask)"
            )
        return visual_mask


def say_no_reuse(reason: str) -> None:
    """Warn (Python shows equal warnings once) that prompts are read whole although `reuse_prefix` was asked for."""
    warnings.warn(f"no prefix is reused: {reason}", stacklevel=2)


def _stamp(decoder: torch.nn.Module) -> Hashable:
    """Return what changes with the decoder, when a weight is replaced or written to, or autocast begins or ends."""
    weights = tuple(
        (id(parameter), 0 if parameter.is_inference() else parameter._version) for parameter in decoder.parameters()
    )
    device = next(decoder.parameters()).device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return weakref.ref(decoder), weights, autocast
