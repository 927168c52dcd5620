"""`prune(model, config)`: a session in which a model's decoder stack runs pruned, undone on exit whatever happens."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Mapping
from typing import Any

import torch

from .families import Family, family_of
from .flops import DecoderShape
from .forward import PrunedForward, say_no_reuse
from .graphs import LayerGraphs
from .kernels import choose
from .method import Method as PruningConfig
from .method import PromptState
from .prefix_cache import CACHE_BYTES, PrefixStore
from .trace import PruningTrace
from .vision import EncoderHook

_entering = threading.Lock()


def prune(
    model: torch.nn.Module,
    config: PruningConfig | Mapping[str, Any] | str | os.PathLike,
    visual_mask: torch.Tensor | None = None,
    *,
    backend: str = "auto",
    reuse_prefix: bool | PrefixStore = False,
    prefix_cache_bytes: int = CACHE_BYTES,
    cuda_graphs: bool | LayerGraphs = False,
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
    cuda_graphs:
        run layers that read a single prompt densely with few tokens, those after the filter, as CUDA graphs: the same
        numbers with fewer launches, for prompts that come one by one. Recorded when first met, forgotten when the block
        ends; a `LayerGraphs` in place of True goes on beyond it

    After a pruned prefill the output holds the surviving tokens, left-padded per batch; `logits[:, -1]` is always the
    last prompt token's. The cache to continue with is `output.past_key_values`. With `reuse_prefix` it holds the tokens
    that ran.

    Raises:
        ValueError: a bad config, a layer boundary that the model does not have, an unknown model family or backend,
            no visual mask for a bare decoder, a negative size, CUDA graphs without CUDA or with `reuse_prefix`.
        RuntimeError: on entering, when the model is being pruned already.

    """
    if isinstance(prefix_cache_bytes, bool) or not isinstance(prefix_cache_bytes, int) or prefix_cache_bytes < 0:
        raise ValueError(f"prefix_cache_bytes must be an integer ≥ 0, got {prefix_cache_bytes!r}")
    if isinstance(reuse_prefix, PrefixStore):
        reuse: int | PrefixStore | None = reuse_prefix
    else:
        reuse = prefix_cache_bytes if reuse_prefix else None
    graphs = LayerGraphs() if cuda_graphs is True else cuda_graphs or None
    if graphs is not None and reuse is not None:
        raise ValueError("cuda_graphs is for prompts that are read whole; leave it or reuse_prefix out")
    return PruningSession(model, PruningConfig.of(config), visual_mask, backend, reuse, graphs)


class PruningSession:
    """An active `prune` block.

    traces:
        one `PruningTrace` per prompt of every prefill, in order
    policies:
        one `PromptState` per prompt of every prefill, in order: what the method remembers of it
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
        graphs: LayerGraphs | None = None,
    ):
        self.model = model
        self._family: Family = family_of(model)
        self._decoder = self._family.decoder(model)
        text_config = self._decoder.config
        self.config = config.resolved(text_config.num_hidden_layers)
        self.config.check_layers(text_config.num_hidden_layers)
        if visual_mask is None and self._family.needs_mask:
            raise ValueError(
                f"{type(model).__name__} does not know which tokens are visual: "
                "pass prune(model, config, visual_mask=mask), mask bool [batch, tokens]"
            )
        if visual_mask is not None and (visual_mask.dtype != torch.bool or visual_mask.ndim != 2):
            raise ValueError(
                f"visual_mask must be bool [batch, tokens], got {visual_mask.dtype} {list(visual_mask.shape)}"
            )
        parameter = next(self._decoder.parameters())
        choose(backend, parameter.device, parameter.dtype, DecoderShape.of(text_config).head_dim)
        if graphs is not None:
            graphs.check(self._decoder)
        self._hook = None
        self._watch = self._watch_encoder()
        self._check_positions()
        self._lasting = isinstance(reuse, PrefixStore)
        self.prefixes = None if reuse is None else self._prefix_store(reuse)
        self._forward = PrunedForward(
            model, self._family, self.config, visual_mask, backend, self.prefixes, graphs, self._watch
        )
        self.traces: list[PruningTrace] = self._forward.traces
        self.policies: list[PromptState] = self._forward.policies

    def __enter__(self) -> PruningSession:
        attributes = vars(self._decoder)
        with _entering:
            if isinstance(getattr(attributes.get("forward"), "__self__", None), PrunedForward):
                raise RuntimeError(
                    f"this {type(self.model).__name__} is being pruned already; "
                    "leave that `with prune(…)` block first, or load a second copy of the model"
                )
            self._replaced = attributes.get("forward")
            self._decoder.forward = self._forward.forward
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
                say_no_reuse(f"method {stage.method!r} {stage.no_reuse}")
                return None
        return reuse if self._lasting else PrefixStore(reuse, DecoderShape.of(self._decoder.config))

    def _check_positions(self) -> None:
        rows = self._family.positions(torch.zeros(1, 1, dtype=torch.long))
        if rows.ndim > 2 and any(stage.positions == "compact" for stage in self.config.stages):
            raise ValueError(
                f"'positions' is 'compact', but {type(self.model).__name__} gives each token three positions (M-RoPE), "
                "which cannot be counted anew; use 'original'"
            )

    def _watch_encoder(self) -> EncoderHook | None:
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
        return EncoderHook(encoder)

    def _find_visual(self, module, args, kwargs):
        """Forward pre-hook of the family's entry module: read the visual mask off its inputs and send it along."""
        inputs = inspect.signature(type(module).forward).bind_partial(module, *args, **kwargs).arguments
        inputs |= inputs.pop("kwargs", {})
        if self._forward.visual_mask is None:
            kwargs["visual_mask"] = self._family.visual_mask(self.model, inputs)
        return args, kwargs
