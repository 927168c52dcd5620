"""FLOPs as the field counts them: per decoder layer 4nd² + 2n²d + 3ndm multiply-adds (METHOD: FastV, PyramidDrop, …).

The formula's `4nd²` is query, key, value and output projections, `2n²d` the two attention products, `3ndm` a gated MLP.
Grouped-query attention shrinks the key and value projections; they are counted as they are.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DecoderShape:
    """The dimensions of a decoder that FLOPs and cache bytes depend on."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, config) -> DecoderShape:
        """Read the dimensions from a transformers text config."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            mlp=config.intermediate_size,
            heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )

    def layer_flops(self, tokens: float, pairs: float | None = None) -> float:
        """Multiply-adds of one layer run with `tokens` tokens; `pairs` query–key pairs, tokens² unless given."""
        pairs = tokens * tokens if pairs is None else pairs
        width = self.heads * self.head_dim
        projections = 2 * self.hidden * width + 2 * self.hidden * self.kv_heads * self.head_dim
        return tokens * (projections + 3 * self.hidden * self.mlp) + 2 * pairs * width

    def kv_flops(self, tokens: float) -> float:
        """Multiply-adds of the keys and values of `tokens` tokens in one layer, which go no further."""
        return tokens * 2 * self.hidden * self.kv_heads * self.head_dim

    def kv_bytes(self, tokens: int, itemsize: int) -> int:
        """Bytes of the keys and values of `tokens` tokens in one layer, `itemsize` bytes a number."""
        return 2 * tokens * self.kv_heads * self.head_dim * itemsize
