"""`prune(model, config)`: a session in which a model's decoder stack runs pruned, undone on exit whatever happens."""

from __future__ import annotations

import inspect
import os
import threading
import warnings
import weakref
from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .attention import NAME, DecodeCall
from .cache import RaggedCache
from .config import PruningConfig
from .families import Family, family_of
from .flops import DecoderShape
from .kernels import choose
from .packed import pack, unpack
from .prefill import Prefill
from .reuse import CACHE_BYTES, PrefixStore
from .trace import PruningTrace
from .vision import EncoderWatch

_entering = threading.Lock()


def prune(
    model: torch.nn.Module,
    config: PruningConfig | Mapping[str, Any] | str | os.PathLike,
    visual_mask: torch.Tensor | None = None,
    *,
    backend: str = "auto",
    reuse_prefix: bool | PrefixStore = False,
    prefix_cache_bytes: int = CACHE_BYTES,
) -> PruningSession:
    """Return a context manager inside which `model` prunes visual tokens of every prompt it reads.

    config:
        a `PruningConfig`, a dict, JSON text or a path to a `.json` file
    visual_mask:
        bool [B, T], True at visual tokens of the prompts read inside the block; needed for a bare decoder
        (`LlamaForCausalLM`), found by the model family otherwise. Beams repeat its rows.
    backend:
        attention kernel of packed prompts: `auto`, `sdpa`, `varlen` (torch's, CUDA) or `flash_attn`
    reuse_prefix:
        keep what prompts with the same beginning have in common (system text, image, earlier turns), so that a further
        question about an image runs its own tokens: the same decisions and logits, up to rounding. Everything is
        forgotten when the block ends; a `PrefixStore` (an earlier session's `prefixes`) in place of True goes on beyond
        it, and forgets when model, config or weights are not those that it was filled with
    prefix_cache_bytes:
        memory that this may take, the least recently used prefixes leave first; at 0 prompts of one batch still share

    After a pruned prefill the output holds the surviving tokens, left-padded per batch; `logits[:, -1]` is always the
    last prompt token's. The cache to continue with is `output.past_key_values`. With `reuse_prefix` it holds the tokens
    that ran.

    Raises:
        ValueError: a bad config, a layer boundary that the model does not have, an unknown model family or backend,
            no visual mask for a bare decoder, a negative size.
        RuntimeError: on entering, when the model is being pruned already.

    """
    if isinstance(prefix_cache_bytes, bool) or not isinstance(prefix_cache_bytes, int) or prefix_cache_bytes < 0:
        raise ValueError(f"prefix_cache_bytes must be an integer ≥ 0, got {prefix_cache_bytes!r}")
    if isinstance(reuse_prefix, PrefixStore):
        reuse: int | PrefixStore | None = reuse_prefix
    else:
        reuse = prefix_cache_bytes if reuse_prefix else None
    return PruningSession(model, PruningConfig.of(config), visual_mask, backend, reuse)


class PruningSession:
    """An active `prune` block.

    traces:
        one `PruningTrace` per prompt of every prefill, in order
    config:
        the config that runs: the given one, resolved for the depth of the model
    prefixes:
        what is kept of prefixes, and counted of their reuse (`prefixes.reused`); None without `reuse_prefix`, and for
        a method that cannot go with it, which a warning says
    """

    def __init__(
        self,
        model,
        config: PruningConfig,
        visual_mask: torch.Tensor | None,
        backend: str,
        reuse: int | PrefixStore | None = None,
    ):
        self.model = model
        self.traces: list[PruningTrace] = []
        self._family: Family = family_of(model)
        self._decoder = self._family.decoder(model)
        self._text_config = self._decoder.config
        self.config = config.resolved(self._text_config.num_hidden_layers)
        self.config.check_layers(self._text_config.num_hidden_layers)
        if visual_mask is None and self._family.needs_mask:
            raise ValueError(
                f"{type(model).__name__} does not know which tokens are visual: "
                "pass prune(model, config, visual_mask=mask), mask bool [batch, tokens]"
            )
        if visual_mask is not None and (visual_mask.dtype != torch.bool or visual_mask.ndim != 2):
            raise ValueError(
                f"visual_mask must be bool [batch, tokens], got {visual_mask.dtype} {list(visual_mask.shape)}"
            )
        self._visual_mask = visual_mask
        parameter = next(self._decoder.parameters())
        choose(backend, parameter.device, parameter.dtype, DecoderShape.of(self._text_config).head_dim)
        self._backend = backend
        self._forward_lock = threading.Lock()
        self._hook = None
        self._watch = self._watch_encoder()
        self._check_positions()
        self._lasting = isinstance(reuse, PrefixStore)
        self.prefixes = None if reuse is None else self._prefix_store(reuse)

    def __enter__(self) -> PruningSession:
        attributes = vars(self._decoder)
        with _entering:
            if isinstance(getattr(attributes.get("forward"), "__self__", None), PruningSession):
                raise RuntimeError(
                    f"this {type(self.model).__name__} is being pruned already; "
                    "leave that `with prune(…)` block first, or load a second copy of the model"
                )
            self._replaced = attributes.get("forward")
            self._original = self._decoder.forward
            self._decoder.forward = self.forward
        if self._watch is not None:
            self._watch.start()
        entry = self._family.entry(self.model)
        if entry is not None:
            self._hook = entry.register_forward_pre_hook(self._find_visual, with_kwargs=True)
        return self

    def __exit__(self, *exception) -> None:
        if self._replaced is None:
            del self._decoder.forward
        else:
            self._decoder.forward = self._replaced
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if self._watch is not None:
            self._watch.stop()
        if self.prefixes is not None and not self._lasting:
            self.prefixes.clear()

    def _prefix_store(self, reuse: int | PrefixStore) -> PrefixStore | None:
        """Return where prefixes are kept; None, and a warning, where a method cannot do with fewer rows."""
        for stage in self.config.stages:
            if stage.no_reuse is not None:
                _say_no_reuse(f"method {stage.method!r} {stage.no_reuse}")
                return None
        return reuse if self._lasting else PrefixStore(reuse, DecoderShape.of(self._text_config))

    def _attach(self, want_hidden: bool):
        """Return what gives a prefill the prefixes that are known; None, and a warning, where it has to run whole."""
        obstacle = None
        if self._decoder.training:
            obstacle = "the model is in training mode"
        elif torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self._decoder.parameters()):
            obstacle = "gradients are enabled, which reused states have none of: use torch.no_grad()"
        elif want_hidden:
            obstacle = "hidden states of all tokens are asked for"
        if obstacle is None:
            return partial(self.prefixes.attach, stamp=(repr(self.config), self._backend, _stamp(self._decoder)))
        _say_no_reuse(obstacle)
        return None

    def _check_positions(self) -> None:
        rows = self._family.positions(torch.zeros(1, 1, dtype=torch.long))
        if rows.ndim > 2 and any(stage.positions == "compact" for stage in self.config.stages):
            raise ValueError(
                f"'positions' is 'compact', but {type(self.model).__name__} gives each token three positions (M-RoPE), "
                "which cannot be counted anew; use 'original'"
            )

    def _watch_encoder(self) -> EncoderWatch | None:
        """Return what keeps an eye on the image encoder, for a config that reads it."""
        reading = [stage.method for stage in self.config.stages if stage.reads_vision]
        if not reading:
            return None
        encoder = self._family.encoder(self.model)
        if encoder is None:
            raise ValueError(
                f"method {reading[0]!r} reads a CLIP image encoder with a class token and one visual token per patch, "
                f"which this {type(self.model).__name__} lacks; 'divprune' and 'random' prune before any decoder"
            )
        return EncoderWatch(encoder)

    def _find_visual(self, module, args, kwargs):
        """Forward pre-hook of the family's entry module: read the visual mask off its inputs and send it along."""
        inputs = inspect.signature(type(module).forward).bind_partial(module, *args, **kwargs).arguments
        inputs |= inputs.pop("kwargs", {})
        if self._visual_mask is None:
            kwargs["visual_mask"] = self._family.visual_mask(self.model, inputs)
        return args, kwargs

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
        if not self._forward_lock.acquire(blocking=False):
            raise RuntimeError("two threads run one pruned model at the same moment; give each a copy of the model")
        internal = self._text_config._attn_implementation
        try:
            if inputs_embeds is None:
                inputs_embeds = self._decoder.embed_tokens(input_ids)
            if position_ids is not None:
                position_ids = self._family.positions(position_ids)
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
            self._forward_lock.release()

    def _prefill(self, embeds, attention_mask, position_ids, use_cache, visual_mask, want_hidden, kwargs):
        decoder = self._decoder
        visual_mask = self._mask_for(embeds, visual_mask)
        tokens, following = pack(embeds, attention_mask, position_ids, visual_mask, self._rope)
        cache = RaggedCache(embeds.shape[1], following) if use_cache else None
        layers = decoder.layers[: self._text_config.num_hidden_layers]
        vision = None if self._watch is None else self._watch.find(tokens)
        attach = None if self.prefixes is None else self._attach(want_hidden)
        prefill = Prefill(layers, self.config, self._backend, cache, self._rope, vision, attach)
        states = [] if want_hidden else None
        tokens = prefill.run(tokens, states, **kwargs)
        last = unpack(decoder.norm(tokens.hidden), tokens.tails)
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
        for layer, mask, rope in zip(self._decoder.layers, masks, ropes, strict=False):
            if want_hidden:
                states.append(hidden)
            call = DecodeCall(mask)
            output = layer(
                hidden,
                attention_mask=None,
                position_embeddings=rope,
                past_key_values=cache,
                use_cache=True,
                pruning=call,
                **kwargs,
            )
            hidden = output[0] if isinstance(output, tuple) else output
        cache.advance(new)
        last = self._decoder.norm(hidden)
        collected = (*states, last) if want_hidden else None
        return BaseModelOutputWithPast(last_hidden_state=last, past_key_values=cache, hidden_states=collected)

    def _rope(self, hidden, position_ids):
        """Return (cos, sin) of the positions that pruning counted itself, or that the model gave."""
        return self._decoder.rotary_emb(hidden, self._family.positions(position_ids))

    def _mask_for(self, embeds, visual_mask):
        """Return which tokens of the prompts are visual, bool [B, T]; never guess that none are."""
        batch, width = embeds.shape[:2]
        given = self._visual_mask
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


def _say_no_reuse(reason: str) -> None:
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
