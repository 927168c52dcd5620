"""FLOPs as the field counts them: per decoder layer 4nd² + 2n²d + 3ndm multiply-adds (METHOD: FastV, PyramidDrop, …).

The formula's `4nd²` is query, key, value and output projections, `2n²d` the two attention products, `3ndm` a gated MLP.
Grouped-query attention shrinks the key and value projections; they are counted as they are. So are layers that differ
from the formula: of experts the active ones, in a sliding window at most its width of keys per row, no keys of their
own where another layer's are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from .layers import PLAIN, LayerKind


@dataclass(frozen=True)
class LayerShape:
    """What one layer computes and keeps.

    matrices:
        multiply-adds per token in all of its matrices; of experts, in those that a token is sent to
    pair:
        multiply-adds per row and key that it reads
    kv_matrices:
        those of `matrices` that make keys and values
    kv:
        numbers kept per token
    kind:
        what the layer reads
    """

    matrices: int
    pair: int
    kv_matrices: int
    kv: int
    kind: LayerKind = PLAIN

    @classmethod
    def of(cls, layer: nn.Module, kind: LayerKind, shape: DecoderShape, active: int) -> LayerShape:
        """Read them from a decoder layer; `shape` where its modules do not say it, `active` experts per token."""
        attention = getattr(layer, "self_attn", None)
        parts = [getattr(attention, name, None) for name in ("k_proj", "v_proj")]
        made = [part for part in parts if isinstance(part, nn.Linear)]
        head = getattr(attention, "head_dim", shape.head_dim)
        kv = sum(part.out_features for part in made) or 2 * shape.kv_heads * head
        if len(made) == 1:  # keys that are values, too
            kv *= 2
        kv_matrices, matrices = sum(map(_size, made)), _matrices(layer, active)
        if kind.keys_of is not None:
            matrices, kv_matrices, kv = matrices - kv_matrices, 0, 0
        if kind.reads == "recurrent":
            return cls(matrices, 0, 0, 0, kind)
        return cls(matrices, 2 * shape.heads * head, kv_matrices, kv, kind)

    def flops(self, tokens, pairs):
        """Multiply-adds with `tokens` tokens and `pairs` row–key pairs, of which a window lets through some."""
        if self.kind.window is not None:
            pairs = np.minimum(pairs, tokens * self.kind.window)
        return tokens * self.matrices + pairs * self.pair


@dataclass(frozen=True)
class DecoderShape:
    """The dimensions of a decoder that FLOPs and cache bytes depend on.

    each:
        its layers, where the dimensions do not say what each of them does; () where they do
    """

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    each: tuple[LayerShape, ...] = ()

    @classmethod
    def of(cls, config) -> DecoderShape:
        """Read the dimensions from a transformers text config."""
        heads, mlp = config.num_attention_heads, config.intermediate_size
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            mlp=mlp if isinstance(mlp, int) else max(mlp),
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )

    @classmethod
    def of_decoder(cls, decoder: nn.Module, kinds: Sequence[LayerKind]) -> DecoderShape:
        """Read config and layers of a decoder stack, whose layers are of `kinds`."""
        shape, config = cls.of(decoder.config), decoder.config
        active = getattr(config, "num_experts_per_tok", None) or 0
        each = tuple(
            LayerShape.of(layer, kind, shape, active) for layer, kind in zip(decoder.layers, kinds, strict=False)
        )
        kv_matrices = int(shape.kv_flops(1))
        plain = LayerShape(
            int(shape.layer_flops(1, 0)), 2 * shape.heads * shape.head_dim, kv_matrices, kv_matrices // shape.hidden
        )
        return shape if all(one == plain for one in each) else replace(shape, each=each)

    def layer_flops(self, tokens: float, pairs: float | None = None, layer: int | None = None) -> float:
        """Multiply-adds of a layer run with `tokens` tokens; `pairs` query–key pairs, tokens² unless given.

        layer: which one; None for the mean of all.
        """
        pairs = tokens * tokens if pairs is None else pairs
        if self.each:
            chosen = self.each if layer is None else (self.each[layer],)
            return sum(one.flops(tokens, pairs) for one in chosen) / len(chosen)
        width = self.heads * self.head_dim
        projections = 2 * self.hidden * width + 2 * self.hidden * self.kv_heads * self.head_dim
        return tokens * (projections + 3 * self.hidden * self.mlp) + 2 * pairs * width

    def kv_flops(self, tokens: float, layer: int | None = None) -> float:
        """Multiply-adds of the keys and values of `tokens` tokens in a layer, which go no further."""
        if self.each:
            chosen = self.each if layer is None else (self.each[layer],)
            return tokens * sum(one.kv_matrices for one in chosen) / len(chosen)
        return tokens * 2 * self.hidden * self.kv_heads * self.head_dim

    def kv_bytes(self, tokens: int | Sequence[int], itemsize: int) -> int:
        """Bytes of the keys and values of `tokens` tokens in one layer, or in each, `itemsize` bytes a number."""
        if isinstance(tokens, int):
            return 2 * tokens * self.kv_heads * self.head_dim * itemsize
        numbers = [one.kv for one in self.each] or [2 * self.kv_heads * self.head_dim] * self.layers
        return sum(count * kv for count, kv in zip(tokens, numbers, strict=True)) * itemsize

    def held(self, tokens: int) -> list[int]:
        """Return how many tokens of a dense prompt each layer keeps the keys and values of."""
        return [one.kind.cached(tokens) for one in self.each] or [tokens] * self.layers


def _size(matrix: nn.Linear) -> int:
    return matrix.in_features * matrix.out_features


def _matrices(layer: nn.Module, active: int) -> int:
    """Multiply-adds per token: linear modules, a router's weight, and of experts (stacked [E, …]) the active ones."""
    total = 0
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            total += 0 if ".lora_" in name else _size(module)
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 2 and parameter_name == "weight":
                total += parameter.numel()
            elif parameter.ndim == 3 and not isinstance(module, nn.Conv1d):
                total += parameter.numel() * active // len(parameter)
    return total
