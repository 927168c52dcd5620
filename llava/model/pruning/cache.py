"""The ragged cache: each layer keeps the keys and values of the tokens it ran with, padded per layer, not per model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionLayer

from .decoding import Decoding, HeldAside
from .layers import PLAIN, LayerKind
from .layouts import sinks
from .method import KVRule
from .packed import PackedTokens, upload
from .packing import left_padded_places
from .recurrent import nbytes


class _Window(NamedTuple):
    """What a layer with a window holds of the prompts: which tokens, and the earliest position among them."""

    kind: LayerKind
    first: int
    places: bytes
    lengths: tuple[int, ...]


class RaggedCache(Cache):
    """Keys and values of pruned prompts; `generate` (beams, assisted decoding, chat) uses it like any other cache.

    A layer holds [B, Hkv, L, d] with L the longest of *its* prompts, shorter ones padded on the left. `generate`
    sees the length of the prompt as it was given: positions and masks never depend on what was pruned.

    next_position:
        int64 [B], position of the next token of each prompt
    length:
        tokens seen so far, left padding of the batch included
    given:
        int64 [B], tokens of each prompt as it was given, from which windows count; None in a cache without windows
    """

    def __init__(
        self,
        length: int,
        next_position: torch.Tensor,
        given: tuple[int, ...],
        decoding: Decoding | None = None,
    ):
        super().__init__(layers=[])
        self.given: torch.Tensor | None = None
        self._given = given
        self.length = self.prompt_length = length
        self.next_position = next_position
        self.prompt_tokens: list[tuple[int, ...]] = []
        self.shifts: list[tuple[int, ...] | None] = []
        self._valid: dict[tuple[int, ...], torch.Tensor] = {}
        self._shift: dict[tuple[int, ...], torch.Tensor] = {}
        self._bias: dict[int, torch.Tensor] = {}
        self.decoding = decoding
        self.aside = None if decoding is None or decoding.visual == 1 else HeldAside(decoding)
        self._windows: list[_Window | None] = []
        self._places: dict[_Window, torch.Tensor] = {}

    def store(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        tokens: PackedTokens,
        rule: KVRule,
        shift: tuple[int, ...] | None = None,
        unread: np.ndarray | None = None,
        kind: LayerKind = PLAIN,
    ) -> tuple[int, ...]:
        """Append the next layer: key and value [1, Hkv, T, d] of `tokens`. Returns the tokens kept of each prompt.

        shift: by how much the positions of this layer run behind the prompt's own, where they were renumbered
        unread: bool [T], visual tokens that are not kept, where `rule` keeps all others
        kind: what the layer does; of a window, those tokens are kept that the next one can see
        """
        lengths, weights, kept = tokens.lengths, tokens.weights, None
        if unread is not None and rule.visual == "all":
            kept, name = ~unread, None
        elif rule.visual != "all" and tokens.visual.any():
            name = ("kv", rule)
            kept = tokens.once((*name, "mask"), lambda: _kept(tokens, rule))
        if kind.window is not None:
            near, name = self._near(tokens, kind), None
            kept = near if kept is None else kept & near
        if kept is not None:
            places = partial(np.flatnonzero, kept)
            index = upload(places(), key.device) if name is None else tokens.tensor(name, places, key.device)
            key, value = key.index_select(2, index), value.index_select(2, index)
            weights = None if weights is None else weights.index_select(0, index)
            counted = partial(_counts, kept, tokens)
            lengths = counted() if name is None else tokens.once((*name, "lengths"), counted)
        visual = tokens.visual if kept is None or self.decoding is None else tokens.visual[kept]
        if self.decoding is not None and self.decoding.text < 1:
            if kind.window is not None:
                raise ValueError("'decoding.text' does not go with layers that read a window: leave it out")
            ends = np.cumsum(lengths)
            bounds = [(int(end) - length, int(end)) for end, length in zip(ends, lengths, strict=True)]
            index, lengths = self.decoding.text_kept(key, visual, bounds)
            key, value = key.index_select(2, index), value.index_select(2, index)
            weights = None if weights is None else weights.index_select(0, index)
            visual = upload(visual, key.device)[index]
        self._windows.append(None if kind.window is None else self._window(tokens, kind, kept, lengths))
        layer = DynamicLayer()
        layer.lazy_initialization(key, value)
        layer.keys, layer.values = _padded(key, lengths, tokens), _padded(value, lengths, tokens)
        if weights is not None:
            self._bias[len(self.layers)] = _padded(weights.log()[None, None, :, None], lengths, tokens)[:, 0, :, 0]
        if self.aside is not None:
            seen = visual if isinstance(visual, torch.Tensor) else upload(visual, key.device)
            own = _padded(seen[None, None, :, None], lengths, tokens)[:, 0, :, 0]
            self.aside.hold(len(self.layers), own)
        self.layers.append(layer)
        self.prompt_tokens.append(lengths)
        self.shifts.append(shift)
        if shift is not None and shift not in self._shift:
            self._shift[shift] = upload(np.array(shift), self.next_position.device)
        width = max(lengths)
        if lengths not in self._valid and any(n < width for n in lengths):
            filled = np.arange(width)[None] >= width - np.array(lengths)[:, None]
            self._valid[lengths] = upload(filled, key.device)
        return lengths

    def store_states(self, states: LinearAttentionLayer, shift: tuple[int, ...] | None = None) -> None:
        """Append the next layer: the states [B, …] that a recurrent layer has after the prompts."""
        self.layers.append(states)
        self._windows.append(None)
        self.prompt_tokens.append(())
        self.shifts.append(shift)

    def masks(self, new: int) -> list[torch.Tensor | None]:
        """Return, for each layer, which keys `new` further tokens may read: bool [B, 1, new, L + new], None for all.

        Of a layer with tokens that stand for others, fp32: their bias, −∞ at keys that may not be read.
        """
        made: dict[tuple, torch.Tensor | None] = {}
        last = max(self._given) + self.length - self.prompt_length + new - 1
        windows = self._windows
        if self._places:  # a window that reaches back to all that is held hides nothing
            windows = [one if one and not one.kind.near(last, one.first) else None for one in windows]
        keys = list(zip(self.prompt_tokens, windows, strict=True))
        for layer, key in enumerate(keys):
            if not key[0]:
                made[key] = None
            elif key not in made:
                made[key] = self._mask(*key, self.layers[layer].get_seq_length(), new)
        masks = [made[key] for key in keys]
        for layer, hidden in self.aside.hidden.items() if self.aside is not None else ():
            read = ~F.pad(hidden, (0, self.layers[layer].get_seq_length() - hidden.shape[1] + new))[:, None, None]
            masks[layer] = read if masks[layer] is None else read & masks[layer].to(read.device)
        for layer, bias in self._bias.items():
            full = F.pad(bias, (0, self.layers[layer].get_seq_length() - bias.shape[1] + new))[:, None, None]
            seen = masks[layer]
            masks[layer] = full if seen is None else full.masked_fill(~seen.to(full.device), float("-inf"))
        return masks

    def ropes(self, position_ids: torch.Tensor, rotary: Callable[[torch.Tensor], Any]) -> list[Any]:
        """Return (cos, sin) of the new tokens in each layer; position_ids [B, q] before any renumbering."""
        made = {None: rotary(position_ids)}
        for shift in self.shifts:
            if shift not in made:
                made[shift] = rotary(position_ids - self._shift[shift][:, None])
        return [made[shift] for shift in self.shifts]

    def _near(self, tokens: PackedTokens, kind: LayerKind) -> np.ndarray:
        """Return which tokens the first further one of their prompt can see in a layer with a window: bool [T]."""
        parts = zip(self._given, tokens.spans, strict=True)
        return np.concatenate([kind.near(n, tokens.position[start:end]) for n, (start, end) in parts])

    def _window(self, tokens: PackedTokens, kind: LayerKind, kept: np.ndarray, lengths: tuple[int, ...]) -> _Window:
        places = tokens.position[kept]
        window = _Window(kind, int(places.min(initial=max(self._given))), places.tobytes(), lengths)
        if self.given is None:
            self.given = upload(np.array(self._given), self.next_position.device)
        if window not in self._places:
            padded = np.full((len(lengths), max(lengths)), -1)
            padded.reshape(-1)[left_padded_places(lengths, max(lengths))] = places
            self._places[window] = upload(padded, self.given.device)
        return window

    def _mask(self, lengths: tuple[int, ...], window: _Window | None, cached: int, new: int) -> torch.Tensor | None:
        if window is not None:
            seen = self.length - self.prompt_length
            columns = self.given[:, None] + torch.arange(seen + new, device=self.given.device)
            rows, columns = columns[:, seen:, None], torch.cat((self._places[window], columns), 1)[:, None]
            return ((columns >= 0) & (columns <= rows) & window.kind.near(rows, columns))[:, None]
        valid = self._valid.get(lengths)
        if valid is None and new == 1:
            return None
        device = self.next_position.device
        mask = torch.ones(len(self.next_position), 1, new, cached + new, dtype=torch.bool, device=device)
        mask[..., cached:] = torch.ones(new, new, dtype=torch.bool, device=device).tril()
        if valid is not None:
            mask[..., : valid.shape[1]] = valid[:, None, None]
        return mask

    def advance(self, new: int) -> None:
        """Count `new` tokens as seen, after all layers have run."""
        self.length += new
        self.next_position = self.next_position + new
        if self.aside is not None:
            self.aside.advance(new)

    def observer(self, layer: int) -> Callable | None:
        """Return what watches a layer's new tokens, to choose the visual keys that later ones read; None without."""
        if self.aside is None or layer not in self.aside.visual:
            return None
        return partial(self.aside.observe, layer, valid=self._valid.get(self.prompt_tokens[layer]))

    def choose(self, query: torch.Tensor, scaling: float) -> None:
        """Choose which visual keys of the newest layer are read, by the prompts' last tokens: query [B, H, 1, d]."""
        layer = len(self.layers) - 1
        if self.aside is not None and layer in self.aside.visual:
            self.observer(layer)(query, self.layers[layer].keys, scaling)
            self.aside.choose(layer)

    def nbytes(self) -> int:
        """Bytes of all keys, values and states held, padding included."""
        return sum(
            nbytes(layer) if isinstance(layer, LinearAttentionLayer) else layer.keys.nbytes + layer.values.nbytes
            for layer in self.layers
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens seen so far, pruned ones included."""
        return self.length

    def get_mask_sizes(self, *args, **kwargs):
        """Refuse: only a model without pruning asks, and its masks would not fit."""
        raise RuntimeError(
            "this cache holds a pruned prompt and the model is not pruned now; continue inside the `with prune(…)` "
            "block that read the prompt, or start again without past_key_values"
        )

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder the prompts for beam search."""
        super().reorder_cache(beam_idx)
        self._pick(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the prompts at `indices`, in that order."""
        for layer in self.layers:  # which may lie on several devices
            if isinstance(layer, LinearAttentionLayer):
                layer.reorder_cache(indices)
            else:
                layer.batch_select_indices(indices.to(layer.keys.device))
        self._pick(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every prompt `repeats` times."""
        batch = torch.arange(len(self.next_position), device=self.next_position.device)
        self.batch_select_indices(batch.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` decoded tokens (a negative number, as transformers asks).

        Raises:
            ValueError: more than were decoded; a pruned prompt itself cannot be shortened. Recurrent layers.

        """
        if any(isinstance(layer, LinearAttentionLayer) for layer in self.layers):
            raise ValueError(
                "recurrent layers cannot forget tokens again, which drafts need: leave assistant_model and "
                "prompt_lookup_num_tokens out"
            )
        decoded = self.length - self.prompt_length
        if abs(tokens_to_remove) > decoded:
            raise ValueError(
                f"crop({tokens_to_remove}) reaches into the pruned prompt: only {decoded} tokens follow it"
            )
        super().crop(tokens_to_remove)
        self.advance(-abs(tokens_to_remove))

    def reset(self) -> None:
        """Refuse: a pruned prompt cannot be emptied and refilled; a new prefill makes a new cache."""
        raise RuntimeError("a RaggedCache cannot be reset; leave past_key_values out to start a new prompt")

    def _pick(self, rows: torch.Tensor) -> None:
        self.next_position = self.next_position.index_select(0, rows.to(self.next_position.device))
        if self.given is not None:
            self.given = self.given.index_select(0, rows.to(self.given.device))
        self._places = {key: places.index_select(0, rows.to(places.device)) for key, places in self._places.items()}
        self._bias = {key: bias.index_select(0, rows.to(bias.device)) for key, bias in self._bias.items()}
        if self.aside is not None:
            self.aside.pick(rows)
        # masks stay under the key of the layer's prompt lengths: all layers that share it are reordered alike
        self._valid = {key: valid.index_select(0, rows.to(valid.device)) for key, valid in self._valid.items()}
        self._shift = {key: shift.index_select(0, rows.to(shift.device)) for key, shift in self._shift.items()}


def _counts(kept: np.ndarray, tokens: PackedTokens) -> tuple[int, ...]:
    return tuple(int(kept[start:end].sum()) for start, end in tokens.spans)


def _kept(tokens: PackedTokens, rule: KVRule) -> np.ndarray:
    kept = ~tokens.visual
    if rule.visual == "sink":
        kept[sinks(tokens, rule.sink)] = True
    return kept


def _padded(states: torch.Tensor, lengths: tuple[int, ...], tokens: PackedTokens) -> torch.Tensor:
    width = max(lengths)
    if len(lengths) == 1:
        return states
    stream = states[0].transpose(0, 1)
    if any(n < width for n in lengths):
        places = tokens.tensor(("left padded", lengths), lambda: left_padded_places(lengths, width), stream.device)
        stream = stream.new_zeros(len(lengths) * width, *stream.shape[1:]).index_copy(0, places, stream)
    return stream.unflatten(0, (len(lengths), width)).transpose(1, 2)
