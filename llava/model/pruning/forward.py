"""The forward that replaces a decoder stack's while it is pruned: prompts packed and pruned, new tokens decoded."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .attention import NAME, DecodeCall, run_layer
from .cache import RaggedCache
from .families import Family, shape_of
from .graphs import LayerGraphs
from .grid import grid_of, runs_of
from .layers import rotary_tables
from .method import Method as PruningConfig
from .method import PromptState
from .packed import PackedTokens, upload
from .packing import IGNORE, left_padded_places, pack, unpack
from .prefill import Prefill
from .prefix_cache import PrefixCache
from .trace import PruningTrace
from .vision import EncoderHook


@dataclass
class PrunedOutput(BaseModelOutputWithPast):
    """What a decoder stack returns; fields that some stacks have in addition stay None."""

    router_logits: None = None
    shared_kv_states: None = None


class PrunedForward:
    """The forward of a model's decoder stack under one config; weights and layers are the stack's own.

    family:
        the adapter of the model's family, which knows where the stack is
    config:
        resolved for the stack's depth
    visual_mask:
        bool [B, T] for all prompts, or None where each call brings its own
    backend:
        attention kernel of packed prompts
    prefix_cache, graphs, encoder_hook:
        what earlier prompts left; recorded layers; states of the image encoder; None without
    traces, policies:
        a `PruningTrace` and a `PromptState` per prompt of every prefill so far
    handed:
        keywords for the next call from a model that passes none down: `visual_mask`, `visual_grid`, and the
        `attention_mask` [B, T] that it was called with
    """

    def __init__(
        self,
        model: torch.nn.Module,
        family: Family,
        config: PruningConfig,
        visual_mask: torch.Tensor | None,
        backend: str,
        prefix_cache: PrefixCache | None,
        graphs: LayerGraphs | None,
        encoder_hook: EncoderHook | None,
    ):
        self.model = model
        self.family = family
        self.decoder = family.decoder(model)
        self.config = config
        self.visual_mask = visual_mask
        self.backend = backend
        self.prefix_cache = prefix_cache
        self.graphs = graphs
        self.encoder_hook = encoder_hook
        self.traces: list[PruningTrace] = []
        self.policies: list[PromptState] = []
        self._text_config = self.decoder.config
        self._read_decoder()
        self._adapters = [part for part in self.decoder.modules() if hasattr(part, "merged_adapters")]
        self.handed: dict[str, Any] = {}
        self._lock = threading.Lock()
        self.generating = False
        self._prompt_width: int | None = None
        self._labels: torch.Tensor | None = None
        self._targets: np.ndarray | str | None = None
        self._grid: np.ndarray | None = None

    def _read_decoder(self) -> None:
        """Read what the layers do and cost; raises `ValueError` for a decoder that the engine does not run."""
        self._shape = shape_of(self.model)
        self.kinds = self.family.layers(self.decoder)
        self._tables = rotary_tables(self.decoder)

    @contextmanager
    def prompt_of(self, width: int | None, grid: np.ndarray | None = None) -> Iterator[None]:
        """Around `generate`: prompts end after `width` tokens, padding included; None: where a prefill's tokens end.

        grid:
            where the prompts' visual tokens lie, int [B, width, 4]; the model itself no longer sees it in `generate`
        """
        before = self.generating, self._prompt_width, self._grid
        self.generating, self._prompt_width, self._grid = True, width, grid
        try:
            yield
        finally:
            self.generating, self._prompt_width, self._grid = before

    def labelled(self, forward: Callable) -> Callable:
        """Return a model's `forward` that also shows the decoder what each token is to predict."""

        @torch.compiler.disable
        @wraps(forward)
        def shown(*args, **kwargs):
            labels = kwargs.get("labels")
            self._labels = kwargs.get("shift_labels") if labels is None else next_labels(labels)
            try:
                return forward(*args, **kwargs)
            finally:
                self._labels = None

        return shown

    @torch.compiler.disable
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        visual_mask: torch.Tensor | None = None,
        token_labels: torch.Tensor | None = None,
        visual_grid: np.ndarray | None = None,
        blocks: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> PrunedOutput:
        """Replace the decoder stack's `forward`: prefill packed and pruned, or decode on a ragged cache.

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
        if kwargs.pop("output_router_logits", getattr(self._text_config, "output_router_logits", False)):
            raise ValueError("router logits are not collected while pruning; run without output_router_logits")
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("two threads run one pruned model at the same moment; give each a copy of the model")
        internal = self._text_config._attn_implementation
        try:
            if self.handed:
                visual_mask, visual_grid, blocks = map(self.handed.get, ("visual_mask", "visual_grid", "blocks"))
                self.handed = {}
            if inputs_embeds is None:
                inputs_embeds = self.decoder.embed_tokens(input_ids)
            if position_ids is not None:
                position_ids = self.family.positions(position_ids)
            if isinstance(attention_mask, dict):  # one mask per layer type
                attention_mask = next(iter(attention_mask.values()))
            if attention_mask is not None and attention_mask.shape[1:-1] == (1, 1):  # see `Family.makes_masks`
                attention_mask = attention_mask[:, 0, 0]
            added = self.family.added(kwargs, inputs_embeds)
            self._text_config._attn_implementation = NAME
            more = (output_hidden_states, kwargs)
            if isinstance(past_key_values, RaggedCache):
                return self._decode(inputs_embeds, attention_mask, position_ids, past_key_values, visual_mask, *more)
            _check_cache(past_key_values)
            if token_labels is not None:  # of a model that splices images in, after splicing
                self._labels = next_labels(token_labels)
            if use_cache is None:
                use_cache = self._text_config.use_cache
            beside = {"grid": visual_grid, "added": added, "blocks": blocks}
            given = (inputs_embeds, attention_mask, position_ids, visual_mask, beside)
            width = self._prompt_width
            if width is not None and width < inputs_embeds.shape[1]:
                return self._prefill_and_decode(width, *given, use_cache, *more)
            return self._prefill(*given, use_cache, *more)
        finally:
            self._text_config._attn_implementation = internal
            self._lock.release()

    def _prefill(self, embeds, attention_mask, position_ids, visual_mask, beside, use_cache, want_hidden, kwargs):
        visual_mask = self._mask_for(embeds, visual_mask)
        beside = beside | {"grid": self._grid_for(visual_mask, beside["grid"]), "targets": self._labels}
        tokens, following = pack(embeds, attention_mask, position_ids, visual_mask, self._rope, **beside)
        decoding = self.config.decoding
        cache = RaggedCache(embeds.shape[1], following, tokens.lengths, decoding) if use_cache else None
        layers = self.decoder.layers[: self._text_config.num_hidden_layers]
        if torch.is_grad_enabled() and any(layer.training and layer.gradient_checkpointing for layer in layers):
            cache = None  # as transformers does: it would hold on to the states that checkpointing drops
        vision = None if self.encoder_hook is None else self.encoder_hook.find(tokens)
        attach = None if self.prefix_cache is None else self._attach(embeds.device.type, want_hidden)
        graphs = None if self.graphs is None or want_hidden else self._ready_graphs(embeds.device.type)
        prefill = Prefill(
            layers, self.kinds, self.config, self.backend, cache, self._rope, vision, attach, graphs, len(self.traces)
        )
        states = [] if want_hidden else None
        tokens = prefill.run(tokens, states, **kwargs)
        norm = self.family.norm(self.decoder)
        training = tokens.targets is not None and self.decoder.training and not want_hidden
        if training:  # the head has nothing to say about the others, and padding costs it as much as tokens
            places = np.flatnonzero(tokens.targets != IGNORE)
            last = norm(tokens.hidden.index_select(1, upload(places, tokens.hidden.device)))
            self._targets = tokens.targets[None, places]
        else:
            last = unpack(norm(tokens.hidden), tokens.tails)
            self._targets = targets_of(tokens)
        self.policies[len(self.traces) :] = prefill.policies  # whoever empties the traces empties these
        self.traces += prefill.traces(self._shape, embeds.dtype)
        hidden = None
        if want_hidden:
            hidden = (*(unpack(stream, lengths) for stream, lengths in states), last)
        return PrunedOutput(last_hidden_state=last, past_key_values=cache, hidden_states=hidden)

    def _prefill_and_decode(
        self, width, embeds, attention_mask, position_ids, visual_mask, beside, use_cache, want_hidden, kwargs
    ):
        """Read prompts of `width` tokens, and decode what `generate` has appended to them: drafts, or earlier answers.

        The output holds the surviving tokens and then all appended ones.
        """

        def split(part: torch.Tensor | None) -> tuple:
            return (None, None) if part is None else (part[..., :width], part[..., width:])

        (masks, more_masks), (places, more_places) = split(attention_mask), split(position_ids)
        added = {layer: part[:, :width] for layer, part in beside["added"].items()}
        beside = {name: part if part is None else part[:, :width] for name, part in beside.items() if name != "added"}
        beside["added"] = added
        given = (embeds[:, :width], masks, places, split(visual_mask)[0], beside)
        prompt = self._prefill(*given, True, want_hidden, kwargs)
        cache = prompt.past_key_values
        more = self._decode(embeds[:, width:], more_masks, more_places, cache, None, want_hidden, kwargs)
        self._targets = None
        pairs = zip(prompt.hidden_states, more.hidden_states, strict=True) if want_hidden else ()
        return PrunedOutput(
            last_hidden_state=torch.cat((prompt.last_hidden_state, more.last_hidden_state), 1),
            past_key_values=cache if use_cache else None,
            hidden_states=tuple(torch.cat(pair, 1) for pair in pairs) or None,
        )

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
        parts = zip(self.decoder.layers, self.kinds, masks, ropes, strict=False)
        for index, (layer, kind, mask, rope) in enumerate(parts):
            if want_hidden:
                states.append(hidden)
            call = None if kind.reads == "recurrent" else DecodeCall(mask, cache.observer(index))
            hidden = run_layer(layer, hidden, kind.rope(rope), call, kwargs, cache)
        cache.advance(new)
        last = self.family.norm(self.decoder)(hidden)
        collected = (*states, last) if want_hidden else None
        return PrunedOutput(last_hidden_state=last, past_key_values=cache, hidden_states=collected)

    def _attach(self, device: str, want_hidden: bool) -> Callable[[PackedTokens], PackedTokens] | None:
        """Return what gives a prefill its known prefixes; None, and a warning, where it has to run whole."""
        obstacle = None
        if self.decoder.training:
            obstacle = "the model is in training mode"
        elif torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.decoder.parameters()):
            obstacle = "gradients are enabled, which cached states do not have: use torch.no_grad()"
        elif want_hidden:
            obstacle = "hidden states of all tokens are asked for"
        if obstacle is None:
            return partial(self.prefix_cache.attach, shape=self._shape, stamp=self._stamp(device))
        warn_no_prefix_cache(obstacle)
        return None

    def _stamp(self, device: str) -> Hashable:
        """Return what changes with config, decoder, weights (replaced or written to), adapters and autocast.

        Weights that accelerate offloads are new objects at each use; they are taken to stay the same.
        """
        weights = tuple(
            (0, 0) if parameter.is_meta else (id(parameter), 0 if parameter.is_inference() else parameter._version)
            for parameter in self.decoder.parameters()
        )
        adapters = tuple((*part.active_adapters, part.disable_adapters) for part in self._adapters)
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return repr(self.config), self.backend, weakref.ref(self.decoder), weights, adapters, autocast

    def _ready_graphs(self, device: str) -> LayerGraphs | None:
        """Return the recorded layers; None where their outputs would not be what the layers' own are."""
        if self.decoder.training or torch.is_grad_enabled() or torch.is_autocast_enabled(device):
            return None
        return self.graphs.ready(self.decoder)

    def loss_function(self, loss: Callable) -> Callable:
        """Return a model's loss, in which each token of the output predicts what followed it in the prompt as given."""

        @wraps(loss)
        def pruned(logits, labels=None, *args, shift_labels=None, **kwargs):
            targets = self._targets
            if not isinstance(targets, np.ndarray):
                raise ValueError(targets or "labels belong to a prompt that the pruned model has just read")
            if targets.shape != tuple(logits.shape[:2]):
                raise ValueError(
                    f"labels need the logits of all {targets.shape[1]} rows of the output, got {logits.shape[1]}: "
                    "leave logits_to_keep out"
                )
            shift_labels = upload(targets, logits.device)
            return loss(logits, labels, *args, shift_labels=shift_labels, **kwargs)

        return pruned

    def _rope(self, hidden, position_ids):
        """Return (cos, sin), table after table, of positions that pruning counted itself, or that the model gave."""
        places = self.family.positions(position_ids)
        if not self._tables:
            return self.decoder.rotary_emb(hidden, places)
        return tuple(part for name in self._tables for part in self.decoder.rotary_emb(hidden, places, name))

    def _grid_for(self, visual_mask, grid):
        """Return where the visual tokens of the prompts lie, int [B, T, 4]; None where nobody asks."""
        grid = self._grid if grid is None else grid
        if grid is not None:  # beams repeat the prompts, a draft follows them
            more = visual_mask.shape[1] - grid.shape[1]
            return np.pad(
                np.repeat(grid, len(visual_mask) // len(grid), 0), ((0, 0), (0, more), (0, 0)), constant_values=-1
            )
        if any(stage.reads_frames for stage in self.config.stages):
            there = visual_mask.cpu().numpy()
            return grid_of([(there, runs_of(there))])
        return None

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


def next_labels(labels: torch.Tensor) -> torch.Tensor:
    """Return the label of the token after each one, int64 [B, T], of labels [B, T]."""
    return F.pad(labels, (0, 1), value=IGNORE)[:, 1:]


def targets_of(tokens: PackedTokens) -> np.ndarray | str | None:
    """Return what the rows of an output predict, int64 [B, rows] as `unpack` makes it; a string says why it cannot."""
    if tokens.targets is None:
        return None
    if tokens.tails != tokens.lengths:
        return "labels need the logits of all text tokens: leave prefix_cache out"
    width = max(tokens.lengths)
    targets = np.full(len(tokens.lengths) * width, IGNORE)
    targets[left_padded_places(tokens.lengths, width)] = tokens.targets
    return targets.reshape(-1, width)


def _check_cache(cache) -> None:
    """Raise `ValueError` for a cache that a prefill cannot replace by its own."""
    if cache is None:
        return
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        raise ValueError(
            f"pruning makes its own cache and replaces a plain DynamicCache, not a {type(cache).__name__}"
            f"{' that offloads' * (type(cache) is DynamicCache)}; leave cache_implementation and past_key_values out"
        )
    if cache.get_seq_length():
        raise ValueError(
            "past_key_values holds a prompt that was read without pruning; "
            "continue it outside `with prune(…)`, or read the whole prompt inside"
        )


def warn_no_prefix_cache(reason: str) -> None:
    """Warn (Python shows equal warnings once) that prompts are read whole although a prefix cache was asked for."""
    warnings.warn(f"the prefix cache is not used: {reason}", stacklevel=2)
