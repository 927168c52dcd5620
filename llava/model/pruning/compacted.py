"""The forward that replaces a decoder's where only its inputs are pruned: rows leave, and the decoder runs untouched.

Serves every decoder that takes `inputs_embeds`, `attention_mask` and `position_ids`, and methods that decide before
layer 0. Kept tokens have the positions that the model gave them; a layer with a window counts the rows that are left.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from .flops import DecoderShape
from .forward import PrunedForward, targets_of
from .packed import PackedTokens, upload
from .packing import pack, unpack
from .prefill import Prefill


class CompactedForward(PrunedForward):
    """Removes visual rows from a decoder's inputs; made as `PrunedForward` is."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.untouched: Callable = self.decoder.forward
        self._signature = inspect.signature(type(self.decoder).forward)

    def _read_decoder(self) -> None:
        """Read what can be read of a decoder that the engine does not run: its sizes, not what its layers do."""
        self._shape = DecoderShape.of(_sizes(self._text_config))
        self.kinds, self._tables = (), ()

    @torch.compiler.disable
    def forward(self, *args: Any, visual_mask: torch.Tensor | None = None, **kwargs: Any):
        """Replace the decoder's `forward`: fewer rows in, its own output back.

        Raises:
            ValueError: no visual mask, inputs of a form that rows cannot be taken from, an image after a pruned prompt.
            RuntimeError: two threads run the model at the same moment.

        """
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("two threads run one pruned model at the same moment; give each a copy of the model")
        try:
            inputs = self._signature.bind_partial(self.decoder, *args, **kwargs).arguments
            inputs.pop("self", None)
            inputs |= inputs.pop("kwargs", {})
            handed, self.handed = self.handed, {}
            cache = inputs.get("past_key_values")
            if isinstance(cache, ShortenedCache):
                return self._continue(inputs, cache, handed)
            return self._compact(inputs, cache, {"visual_mask": visual_mask} | handed)
        finally:
            self._lock.release()

    def _compact(self, inputs: dict[str, Any], cache: Cache | None, handed: dict[str, Any]):
        embeds = inputs.get("inputs_embeds")
        if embeds is None:
            embeds = self.decoder.get_input_embeddings()(inputs["input_ids"])
        batch, width = embeds.shape[:2]
        mask, visual_mask = handed.get("attention_mask", inputs.get("attention_mask")), handed["visual_mask"]
        if cache is not None and cache.get_seq_length():
            if visual_mask is not None and visual_mask.any():
                raise ValueError("an image in the middle of a conversation: read the whole prompt again instead")
            return self.untouched(**inputs)
        visual = self._mask_for(embeds, visual_mask)
        if mask is None:
            mask = torch.ones(batch, width, dtype=torch.long, device=embeds.device)
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
            raise ValueError(f"pruning takes a 2-D attention mask, {type(self.model).__name__} was given another one")
        grid = self._grid_for(visual, handed.get("visual_grid"))
        given, _ = pack(embeds, mask, None, visual, lambda hidden, positions: (), grid, targets=self._labels)
        vision = None if self.encoder_hook is None else self.encoder_hook.find(given)
        layers = range(self._text_config.num_hidden_layers)
        prefill = Prefill(layers, (), self.config, self.backend, None, vision=vision, first=len(self.traces))
        tokens = prefill.before(given)
        prefill.unchanged(tokens)
        self.policies[len(self.traces) :] = prefill.policies
        self.traces += prefill.traces(self._shape, embeds.dtype)
        if tokens is given:  # its rows lie as they were given
            self._targets = None if self._labels is None else self._labels.cpu().numpy()
            return self.untouched(**inputs)
        self._targets = targets_of(tokens)
        rows = _Rows.of(tokens, mask, visual)
        inputs = {name: rows.of_input(name, value) for name, value in inputs.items()}
        if inputs.get("position_ids") is None:
            counted = torch.arange(width, device=embeds.device).expand(batch, width)
            inputs["position_ids"] = rows.of_input("position_ids", counted)
        if inputs.get("inputs_embeds") is not None:
            inputs["inputs_embeds"] = unpack(tokens.hidden, tokens.lengths)
        if not isinstance(inputs.get("attention_mask"), torch.Tensor | dict):
            inputs["attention_mask"] = rows.filled.long()
        output = self.untouched(**inputs)
        if getattr(output, "past_key_values", None) is not None:
            ShortenedCache.make(output.past_key_values, width, rows.filled)
        return output

    def _continue(self, inputs: dict[str, Any], cache: ShortenedCache, handed):
        part = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
        batch, new = part.shape[:2]
        if batch != len(cache.filled):
            raise ValueError(f"the cache holds {len(cache.filled)} prompts, the new tokens are of {batch}")
        visual, mask = handed.get("visual_mask"), handed.get("attention_mask")
        if new > 1 and visual is not None and visual.any():
            raise ValueError("an image in the middle of a pruned conversation: read the whole prompt again instead")
        if new > 1 and mask is not None and not mask[:, -new:].all():
            raise ValueError("new tokens of a pruned prompt cannot be padded; continue the prompts one by one")
        if inputs.get("position_ids") is None:
            inputs["position_ids"] = cache.get_seq_length() + torch.arange(new, device=part.device)[None]
        with cache.opened() as rows:
            ones = torch.ones(batch, rows - cache.filled.shape[1] + new, dtype=torch.long, device=part.device)
            inputs["attention_mask"] = torch.cat([cache.filled.to(ones), ones], 1)
            return self.untouched(**inputs)


def _sizes(config) -> SimpleNamespace:
    """Return the sizes that `DecoderShape.of` reads, those of layer 0 where layers differ, 0 for what has no name."""
    first = getattr(config, "per_layer_config", [config])[0]
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    sizes = {name: getattr(config if name == "num_hidden_layers" else first, name, None) for name in names}
    widths = (getattr(first, name, None) for name in ("intermediate_size", "moe_intermediate_size", "ffn_dim"))
    return SimpleNamespace(**sizes, intermediate_size=next((width for width in widths if width), 0))


class _Rows:
    """Which rows of a padded batch stay, and where: `index` int [B, T′] into [0, T), `filled` bool [B, T′]."""

    def __init__(self, index: torch.Tensor, filled: torch.Tensor, visual: torch.Tensor):
        self.index, self.filled, self.visual = index, filled, visual
        self.batch, self.width = visual.shape

    @staticmethod
    def of(tokens: PackedTokens, mask: torch.Tensor, visual: torch.Tensor) -> _Rows:
        """Lay the tokens out as `unpack` does; padding repeats a prompt's first token.

        mask, visual: of the batch as it was given, [B, T]
        """
        valid, width = mask.bool().cpu().numpy(), max(tokens.lengths)
        index, filled = np.zeros((len(valid), width), np.int64), np.zeros((len(valid), width), bool)
        for b, (start, end) in enumerate(tokens.spans):
            places = np.flatnonzero(valid[b])
            index[b] = places[0]
            index[b, width - (end - start) :] = places[tokens.position[start:end]]
            filled[b, width - (end - start) :] = True
        return _Rows(upload(index, visual.device), upload(filled, visual.device), visual)

    def of_input(self, name: str, value: Any) -> Any:
        """Return an input of the decoder without the rows that leave.

        Raises:
            ValueError: an attention mask that is neither a tensor nor a dict of tensors.

        """
        if isinstance(value, dict):
            return {key: self._mask(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.of_input(name, part) for part in value)
        if name == "attention_mask" and value is not None:
            return self._mask(value)
        if not isinstance(value, torch.Tensor):
            return value
        if name == "position_ids":
            value = value.expand(*value.shape[:-2], self.batch, self.width)
            return value.gather(-1, self.index.expand(*value.shape[:-1], -1))
        if value.shape[:2] == (self.batch, self.width):
            index = self.index.view(*self.index.shape, *(1,) * (value.ndim - 2))
            value = value.gather(1, index.expand(-1, -1, *value.shape[2:]))
            return value & self.filled if value.dtype == torch.bool and value.ndim == 2 else value
        if value.ndim and value.shape[0] == int(self.visual.sum()):
            return self._visual_rows(value)
        return value

    def _visual_rows(self, value: torch.Tensor) -> torch.Tensor:
        """Return the rows of kept visual tokens among [V, …], V the visual tokens of the batch, prompt after prompt."""
        number = (self.visual.flatten().cumsum(0) - 1).view(self.batch, self.width).gather(1, self.index)
        return value[number[self.filled & self.visual.gather(1, self.index)]]

    def _mask(self, value: Any) -> Any:
        if value is None or (isinstance(value, torch.Tensor) and value.ndim == 2):
            return self.filled.long() if value is not None else self._causal()
        if not isinstance(value, torch.Tensor) or value.ndim != 4:
            raise ValueError(f"pruning before the decoder cannot shorten an attention mask of {type(value).__name__}")
        value = value.expand(self.batch, *value.shape[1:])
        count = self.index.shape[1]
        rows = self.index[:, None, :, None].expand(-1, value.shape[1], -1, value.shape[3])
        columns = self.index[:, None, None, :].expand(-1, value.shape[1], count, -1)
        value, there = value.gather(2, rows).gather(3, columns), self.filled[:, None, None]
        if value.dtype == torch.bool:
            return value & there
        return value.masked_fill(~there, torch.finfo(value.dtype).min)

    def _causal(self) -> torch.Tensor | None:
        """What a mask that was left out stands for, where prompts are padded now."""
        if self.filled.all():
            return None
        count = self.index.shape[1]
        causal = torch.ones(count, count, dtype=torch.bool, device=self.index.device).tril()
        return causal & self.filled[:, None, None] | torch.eye(count, dtype=torch.bool, device=self.index.device)


class ShortenedCache(Cache):
    """Mixed into the class of a decoder's own cache: to all but the decoder it is as long as the prompt was given.

    width:
        tokens of the prompt as it was given, padding included
    filled:
        bool [B, T′], which of the cached prompt rows are no padding
    """

    width: int
    filled: torch.Tensor
    _open: bool

    @staticmethod
    def make(cache: Cache, width: int, filled: torch.Tensor) -> None:
        """Turn a cache that has just read T′ rows of a prompt of `width` tokens into a `ShortenedCache`."""
        kind = type(cache)
        cache.__class__ = type(f"Shortened{kind.__name__}", (ShortenedCache, kind), {})
        cache.width, cache.filled, cache._open = width, filled, False

    def opened(self):
        """Return a context in which the cache is what it is; entering returns its rows."""
        return _Opened(self)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens seen so far, pruned ones included; to the decoder, the rows."""
        return super().get_seq_length(layer_idx) + self._removed

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return keys and offset of a mask for further tokens."""
        keys, offset = super().get_mask_sizes(query_length, layer_idx)
        return keys + self._removed, offset

    def update(self, *args: Any, **kwargs: Any):
        """Append keys and values; refused outside the session."""
        if not self._open:
            raise RuntimeError(
                "this cache holds a pruned prompt and the model is not pruned now; continue inside the "
                "`with prune(…)` block that read the prompt, or start again without past_key_values"
            )
        return super().update(*args, **kwargs)

    @property
    def _removed(self) -> int:
        return 0 if self._open else self.width - self.filled.shape[1]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder the prompts for beam search."""
        super().reorder_cache(beam_idx)
        self.filled = self.filled[beam_idx.to(self.filled.device)]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the prompts at `indices`, in that order."""
        super().batch_select_indices(indices)
        self.filled = self.filled[indices.to(self.filled.device)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every prompt `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self.filled = self.filled.repeat_interleave(repeats, 0)


class _Opened:
    def __init__(self, cache: ShortenedCache):
        self.cache = cache

    def __enter__(self) -> int:
        self.cache._open = True
        return self.cache.get_seq_length()

    def __exit__(self, *exception: Any) -> None:
        self.cache._open = False
