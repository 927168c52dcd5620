"""Masks by layer: in some layers text rows, visual rows or decoding read no visual token; no token is dropped.

What VisiPruner's analysis masks (arXiv 2510.17205): cross attention in a window of layers (Fig. 3, 9), with the
attention merged into one visual token or not (Tables 3, 9), visual self-attention (Table 3), the visual cache while
decoding (Tables 2, 10). A layer outside of `layers` runs dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..config import PruningConfig, check_choice, check_number
from ..policy import AttentionRule, KVRule, Policy
from .budget import check_in_decoder

KV = ("read", "all", "none")


@dataclass(frozen=True)
class Mask(PruningConfig):
    """What visual tokens are to the rows of the masked layers (see `AttentionRule`).

    layers:
        the masked layers, from 0; an empty list is dense
    text:
        of text rows: `remove` visual columns before the softmax, `zero` them (or the first `half`) after it, `dense`
    visual:
        of visual rows, which `remove` lets read the text before them only: `dense`, `zero`, `remove`
    merge_layers:
        masked layers whose text rows move all visual attention to visual token number `sink_token`, whatever `text` is
    kv:
        visual keys of masked layers that decoding reads: `read` as text rows of the prompt do (none where `text`
        masks them all, the sink where they merge), `all` or `none`
    """

    layers: tuple[int, ...] | None = None
    text: str = "remove"
    visual: str = "dense"
    merge_layers: tuple[int, ...] = ()
    sink_token: int = 0
    kv: str = "read"

    method: ClassVar[str] = "mask"

    def __post_init__(self):
        super().__post_init__()
        if self.layers is None:
            raise ValueError("method 'mask' needs 'layers' in the pruning config, a list of layers ([] is dense)")
        for key in ("layers", "merge_layers"):
            object.__setattr__(self, key, _layers(key, getattr(self, key)))
        check_choice("text", self.text, ("remove", "zero", "half", "dense"))
        check_choice("visual", self.visual, ("remove", "zero", "dense"))
        check_choice("kv", self.kv, KV)
        check_number("sink_token", self.sink_token, int, 0)
        if odd := sorted(set(self.merge_layers) - set(self.layers)):
            raise ValueError(f"'merge_layers' names {odd}, which 'layers' ({list(self.layers)}) does not mask")

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when a masked layer is not a layer of the model."""
        check_in_decoder(self, num_layers, "layers")

    def attention(self, layer: int) -> AttentionRule:
        """Mask, or merge, in masked layers."""
        if layer not in self.layers:
            return AttentionRule()
        text = "merge" if layer in self.merge_layers else self.text
        return AttentionRule(text=text, visual=self.visual, sink=self.sink_token)

    def cached(self, layer: int) -> KVRule:
        """Keep of masked layers what decoding may read."""
        if layer not in self.layers or self.kv == "all":
            return KVRule()
        if self.kv == "none":
            return KVRule(visual="none")
        if layer in self.merge_layers:
            return KVRule(visual="sink", sink=self.sink_token)
        return KVRule(visual="none") if self.text in ("remove", "zero") else KVRule()

    def start(self, num_layers: int) -> Policy:
        """Return a policy that measures nothing and keeps every token."""
        return Policy()


def _layers(key: str, value: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{key!r} must be a list of layers, got {type(value).__name__} {value!r}")
    for layer in value:
        check_number(key, layer, int, 0)
    if len(set(value)) < len(value):
        raise ValueError(f"{key!r} names a layer twice: {list(value)}")
    return tuple(sorted(value))
