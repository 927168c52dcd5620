"""`LayerKind`: what one decoder layer does with a prompt's rows, read from the decoder's own config and modules.

Positions are places in the prompt as it was given, so that windows and chunks stay where they are when rows between
are dropped. A family's page corrects what its config does not say (`Family.layers`); no method reads any of it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

KINDS = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "recurrent",
    "conv": "recurrent",
}
"""What transformers calls a layer (`config.layer_types`), and its `LayerKind.reads`."""


@dataclass(frozen=True)
class LayerKind:
    """What one layer does with the rows of a prompt. The default: plain causal attention.

    reads:
        `full` (causal) · `sliding`, the last `window` positions · `chunked`, the row's chunk of `window` positions ·
        `recurrent`, no attention at all: rows are read one after the other into a state
    window:
        positions of a sliding window, the row's own included, or of a chunk
    table:
        which of the decoder's rotary tables the layer takes
    keys_of:
        the layer whose keys and values it reads, with that layer's rows; None: its own
    far_blocks:
        whether tokens of one block (`PackedTokens.blocks`) read each other beyond a sliding window, too
    """

    reads: Literal["full", "sliding", "chunked", "recurrent"] = "full"
    window: int | None = None
    table: int = 0
    keys_of: int | None = None
    far_blocks: bool = False

    def rope(self, tables: tuple) -> Any:
        """Return what the layer takes as `position_embeddings`, of the (cos, sin) of all tables in a row."""
        return tables if len(tables) == 2 else tables[2 * self.table : 2 * self.table + 2]

    def near(self, rows: Any, columns: Any) -> Any:
        """Return whether the window of a row at position `rows` reaches back to `columns`; integers or arrays."""
        if self.window is None:
            return True
        if self.reads == "chunked":
            return columns // self.window == rows // self.window
        return columns > rows - self.window

    def cached(self, tokens: int) -> int:
        """Return how many of a prompt's tokens the next one can still see."""
        if self.reads == "recurrent":
            return 0
        if self.window is None:
            return tokens
        return tokens % self.window if self.reads == "chunked" else min(tokens, self.window - 1)


PLAIN = LayerKind()


def kinds_of(decoder: nn.Module) -> tuple[LayerKind, ...]:
    """Return what each layer of a decoder stack does, as its config and modules say.

    Raises:
        ValueError: a layer type that the engine does not know.

    """
    config, tables = decoder.config, rotary_tables(decoder)
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    count = config.num_hidden_layers
    types = (
        getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"] * count
    )
    if unknown := sorted(set(types) - set(KINDS)):
        raise ValueError(f"pruning does not know layers of {', '.join(unknown)} ({type(decoder).__name__})")
    kinds, newest = [], {}
    for index, (layer, name) in enumerate(zip(decoder.layers, types, strict=False)):
        shares = getattr(getattr(layer, "self_attn", None), "is_kv_shared_layer", False)
        kinds.append(
            LayerKind(
                KINDS[name],
                {"sliding_attention": window, "chunked_attention": chunk}.get(name),
                tables.index(name) if name in tables else 0,
                newest.get(name) if shares else None,
            )
        )
        if not shares:
            newest[name] = index
    return tuple(kinds)


def rotary_tables(decoder: nn.Module) -> tuple[str, ...]:
    """Return the layer types that have a rotary table of their own; () for a decoder with one table for all."""
    if "layer_type" not in inspect.signature(decoder.rotary_emb.forward).parameters:
        return ()
    return tuple(sorted(set(decoder.config.layer_types)))
