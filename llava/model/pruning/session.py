"""`prune(model, config)`: a session in which a model's decoder stack runs pruned, undone on exit whatever happens."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from functools import wraps
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from .compacted import CompactedForward
from .devices import execution_device
from .families import Family, decoder_obstacle, family_of
from .flops import DecoderShape
from .forward import PrunedForward, warn_no_prefix_cache
from .graphs import LayerGraphs
from .kernels import choose
from .method import METHODS, PromptState
from .method import Method as PruningConfig
from .methods import NoPruning
from .prefix_cache import PrefixCache
from .trace import PruningTrace
from .vision import EncoderHook

_entering = threading.Lock()


def prune(
    model: torch.nn.Module,
    config: PruningConfig | Mapping[str, Any] | str | os.PathLike | None = None,
    visual_mask: torch.Tensor | None = None,
    *,
    backend: str = "auto",
    prefix_cache: bool | int | PrefixCache | None = False,
    cuda_graphs: bool | LayerGraphs = False,
) -> PruningSession:
    """Return a context manager inside which `model` prunes visual tokens of every prompt it reads.

    model:
        a supported model, a bare decoder, or a PEFT model around one
    config:
        a `PruningConfig`, a dict, JSON text or a path to a `.json` file; None: the one that the model was trained with
        (`visual_schedule` of its config)
    visual_mask:
        bool [B, T], True at visual tokens of the prompts read inside the block; needed for a bare decoder
        (`LlamaForCausalLM`), found by the model family otherwise. Beams repeat its rows.
    backend:
        attention kernel of packed prompts: `auto`, `sdpa`, `varlen` (torch's, CUDA) or `flash_attn`
    prefix_cache:
        keep what prompts with the same beginning share (system text, image, earlier turns), so that a further question
        about an image runs its own tokens only: same decisions and logits, up to rounding. True (2 GiB), or its size in
        bytes: the least recently used prefixes leave first, and at 0 prompts of one batch still share. It is emptied
        when the block ends; a `PrefixCache` (such as an earlier session's `prefix_cache`) keeps its blocks, for as long
        as model, weights and config stay the same
    cuda_graphs:
        run layers that read a single prompt densely with few tokens, those after the filter, as CUDA graphs: the same
        numbers with fewer launches, for prompts that come one by one. Recorded on first use, dropped when the block
        ends; a `LayerGraphs` in place of True keeps them

    After a pruned prefill the output holds the surviving tokens, left-padded per batch; `logits[:, -1]` is always the
    last prompt token's; with a prefix cache it holds the tokens that ran. The cache to continue with is
    `output.past_key_values`. `labels` are compared at the surviving tokens: each predicts the token that followed it in
    the prompt as given. In `generate`, decisions are made at the prompt's last token, whatever a draft model or prompt
    lookup appends; `use_cache=False` reads the prompt again at every step, with the same decisions.

    Raises:
        ValueError: a bad config, a layer boundary that the model does not have, an unknown model family or backend,
            no visual mask for a bare decoder, a negative size, CUDA graphs without CUDA or with a prefix cache; in
            `generate`, `prefill_chunk_size`, `cache_implementation` and `assistant_early_exit`.
        RuntimeError: on entering, when the model is being pruned already.

    """
    if prefix_cache is None or prefix_cache is False:
        cache, lasting = None, False
    elif isinstance(prefix_cache, PrefixCache):
        cache, lasting = prefix_cache, True
    else:
        cache, lasting = PrefixCache() if prefix_cache is True else PrefixCache(prefix_cache), False
    graphs = LayerGraphs() if cuda_graphs is True else cuda_graphs or None
    if graphs is not None and cache is not None:
        raise ValueError("cuda_graphs is for prompts that are read whole; leave it or prefix_cache out")
    config = PruningConfig.of(_trained_config(model) if config is None else config)
    return PruningSession(model, config, visual_mask, backend, cache, lasting, graphs)


class PruningSession:
    """An active `prune` block.

    traces:
        one `PruningTrace` per prompt of every prefill, in order
    policies:
        one `PromptState` per prompt of every prefill, in order: what the method remembers of it
    config:
        the config that runs: the given one, resolved for the depth of the model
    prefix_cache:
        the `PrefixCache`, which counts what it saved (`prefix_cache.reused`); None without one, and for a method that
        does not allow it, which a warning says
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: PruningConfig,
        visual_mask: torch.Tensor | None,
        backend: str,
        prefix_cache: PrefixCache | None = None,
        lasting: bool = False,
        graphs: LayerGraphs | None = None,
    ):
        self.model = model = _without_adapters(model)
        self._family: Family = family_of(model)
        self._decoder = self._family.decoder(model)
        self._obstacle = decoder_obstacle(model, self._family)
        text_config = self._decoder.config
        self.config = config.resolved(text_config.num_hidden_layers)
        self.config.check_layers(text_config.num_hidden_layers)
        if self._obstacle is not None:
            _check_before_decoder(model, self.config, self._obstacle)
        if visual_mask is None and self._family.needs_mask:
            raise ValueError(
                f"{type(model).__name__} does not know which tokens are visual: "
                "pass prune(model, config, visual_mask=mask), mask bool [batch, tokens]"
            )
        if visual_mask is not None and (visual_mask.dtype != torch.bool or visual_mask.ndim != 2):
            raise ValueError(
                f"visual_mask must be bool [batch, tokens], got {visual_mask.dtype} {list(visual_mask.shape)}"
            )
        dtype = next(self._decoder.parameters()).dtype
        if self._obstacle is None:
            choose(backend, execution_device(self._decoder), dtype, DecoderShape.of(text_config).head_dim)
        elif graphs is not None:
            raise ValueError(f"cuda_graphs needs a decoder that the engine runs ({self._obstacle}); leave it out")
        if graphs is not None:
            graphs.check(self._decoder)
        self._reads_frames = any(stage.reads_frames for stage in self.config.stages)
        self._encoder_hook = self._hook_for_encoder()
        self._check_positions()
        if prefix_cache is not None and (
            stage := next((s for s in self.config.stages if s.no_reuse or s.rectify), None)
        ):
            warn_no_prefix_cache(f"method {stage.method!r} {stage.no_reuse or 'rectifies attention'}")
            prefix_cache = None
        obstacle = self._obstacle or (self._family.no_reuse and f"{type(model).__name__} {self._family.no_reuse}")
        if obstacle is None and any(kind.reads == "recurrent" for kind in self._family.layers(self._decoder)):
            obstacle = f"the recurrent layers of {type(model).__name__} keep no state per token"
        if prefix_cache is not None and obstacle is not None:
            warn_no_prefix_cache(obstacle)
            prefix_cache = None
        self.prefix_cache, self._lasting = prefix_cache, lasting
        kind = PrunedForward if self._obstacle is None else CompactedForward
        self._forward = kind(
            model, self._family, self.config, visual_mask, backend, prefix_cache, graphs, self._encoder_hook
        )
        self.traces: list[PruningTrace] = self._forward.traces
        self.policies: list[PromptState] = self._forward.policies
        self._undo = ExitStack()

    def __enter__(self) -> PruningSession:
        with _entering:
            if is_pruned(self._decoder):
                raise RuntimeError(
                    f"this {type(self.model).__name__} is being pruned already; "
                    "leave that `with prune(…)` block first, or load a second copy of the model"
                )
            self._replace(self._decoder, "forward", self._forward.forward)
        if hasattr(self.model, "generate"):
            self._replace(self.model, "generate", self._generate(self.model.generate))
        if hasattr(self.model, "loss_function"):
            self._replace(self.model, "_loss_function", self._forward.loss_function(self.model.loss_function))
            self._replace(self.model, "forward", self._forward.labelled(self.model.forward))
        if self._encoder_hook is not None:
            self._encoder_hook.start()
            self._undo.callback(self._encoder_hook.stop)
        entry = self._family.entry(self.model)
        if entry is not None:
            self._undo.callback(entry.register_forward_pre_hook(self._find_visual, with_kwargs=True).remove)
        if self.prefix_cache is not None and not self._lasting:
            self._undo.callback(self.prefix_cache.clear)
        return self

    def __exit__(self, *exception) -> None:
        self._undo.close()

    def _replace(self, module: torch.nn.Module, name: str, value: Any) -> None:
        """Set an attribute of this one object until the session ends."""
        if name in vars(module):
            self._undo.callback(setattr, module, name, vars(module)[name])
        else:
            self._undo.callback(delattr, module, name)
        setattr(module, name, value)

    def _generate(self, generate: Any) -> Any:
        """Wrap the model's `generate`: refuse what cannot be pruned, and note where the prompt ends."""

        @wraps(generate)
        def pruned(inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
            settings = next(
                (one for one in (kwargs.get("generation_config"), *args) if isinstance(one, GenerationConfig)),
                self.model.generation_config,
            )
            for name, reason in _REFUSED.items():
                value = kwargs.get(name, getattr(settings, name, None))
                if value not in (None, "dynamic"):
                    raise ValueError(f"{name}={value!r} does not go with pruning: {reason}; leave it out")
            given = [kwargs[key] for key in ("inputs_embeds", "input_ids") if kwargs.get(key) is not None]
            given += [] if inputs is None else [inputs]
            ids = kwargs.get("input_ids", inputs)
            grid = None if ids is None else self._grid(kwargs | {"input_ids": ids})
            with self._forward.prompt_of(self._family.prompt_width(given[0]) if given else None, grid):
                return generate(inputs, *args, **kwargs)

        return pruned

    def _check_positions(self) -> None:
        rows = self._family.positions(torch.zeros(1, 1, dtype=torch.long))
        if rows.ndim > 2 and any(stage.positions == "compact" for stage in self.config.stages):
            raise ValueError(
                f"'positions' is 'compact', but {type(self.model).__name__} gives each token three positions (M-RoPE), "
                "which cannot be renumbered; use 'original'"
            )

    def _hook_for_encoder(self) -> EncoderHook | None:
        """Return the hook on the image encoder, for a config that reads it."""
        reading = [stage for stage in self.config.stages if stage.reads_vision]
        if not reading:
            return None
        encoder, name = self._family.encoder(self.model), type(self.model).__name__
        if encoder is None:
            raise ValueError(
                f"method {reading[0].method!r} reads the image encoder, which pruning cannot in this {name}; "
                "'cdpruner', 'divprune' and 'random' prune before any decoder"
            )
        for stage in reading:
            missing = [_NEEDS[need] for need in stage.encoder_needs if not getattr(encoder, need)]
            if missing:
                raise ValueError(
                    f"method {stage.method!r} needs an image encoder with {' and '.join(missing)}, which this {name} "
                    "lacks; 'vispruner' and 'hiprune' do without"
                )
        return EncoderHook(encoder, [one for stage in reading for one in stage.reads_vision])

    @torch.compiler.disable
    def _find_visual(self, module, args, kwargs):
        """Forward pre-hook of the family's entry module: find the visual tokens in its inputs and pass them down."""
        inputs = self._family.arguments(module, args, kwargs)
        found = {}
        if self._forward.visual_mask is None:
            found["visual_mask"] = self._family.visual_mask(self.model, inputs)
            if found["visual_mask"] is not None and not self._forward.generating:
                found["visual_grid"] = self._grid(inputs)
        if self._obstacle is None and (blocks := self._family.blocks(self.model, inputs)) is not None:
            found["blocks"] = blocks
        if self._obstacle is None and self._family.makes_masks:
            given = {name: value for name, value in inputs.items() if name != "self"}
            args, kwargs = (), given | {"attention_mask": _through(inputs)}
        if self._obstacle is None and self._family.passes_keywords:
            kwargs |= found
        else:
            self._forward.handed = found | {"attention_mask": inputs.get("attention_mask")}
        return args, kwargs

    def _grid(self, inputs: dict[str, Any]) -> np.ndarray | None:
        """Return where the visual tokens of a batch lie, for prompts with a video and for methods that ask."""
        if self._reads_frames or self._family.holds_video(inputs):
            return self._family.grid(self.model, inputs)
        return None


def _check_before_decoder(model: torch.nn.Module, config: PruningConfig, obstacle: str) -> None:
    """Raise `ValueError` for a config that needs more of a decoder than its inputs."""
    for stage in config.stages:
        if stage.before_decoder is not True and type(stage) is not NoPruning:
            able = ", ".join(name for name, cls in METHODS.items() if cls.before_decoder is not False)
            raise ValueError(
                f"{type(model).__name__} takes methods that prune before the decoder only ({able}, naming no layer), "
                f"not {stage.method!r}: {obstacle}"
            )
        if stage.positions == "compact":
            raise ValueError(f"'positions' is 'compact', which the engine's own decoders renumber: {obstacle}")


def _through(inputs: dict[str, Any]) -> torch.Tensor:
    """Return the padding mask as [B, 1, 1, T]: transformers' mask functions pass four dimensions on as they are."""
    mask, given = inputs.get("attention_mask"), inputs.get("input_ids")
    if mask is None:
        given = inputs["inputs_embeds"][..., 0] if given is None else given
        mask = torch.ones_like(given, dtype=torch.bool)
    return mask[:, None, None] if mask.ndim == 2 else mask


_NEEDS = {
    "class_token": "a class token",
    "patchwise": "one visual token per patch",
    "shrink": "a size of its own for each picture",
}
"""Fields of `Encoder` in words."""
_REFUSED = {
    "prefill_chunk_size": "the engine reads a prompt in one piece, because decisions are made at its last token",
    "cache_implementation": "the engine makes its own cache",
    "assistant_early_exit": "the draft would be read and pruned by the same layers",
}
"""Settings of `generate` that a pruned model refuses, and why."""


def is_pruned(decoder: torch.nn.Module) -> bool:
    """Whether a session is active on this decoder stack."""
    return isinstance(getattr(vars(decoder).get("forward"), "__self__", None), PrunedForward)


def _trained_config(model: torch.nn.Module) -> Mapping[str, Any]:
    schedule = getattr(_without_adapters(model).config, "visual_schedule", None)
    if schedule is None:
        raise ValueError(f"prune needs a config: this {type(model).__name__} was trained with no visual_schedule")
    return schedule


def _without_adapters(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model inside a PEFT model, whose layers carry the adapters; any other model as it is."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
