"""Masks by layer: in some layers text rows, visual rows or decoding read no visual token; no token is dropped.

What VisiPruner's analysis masks (arXiv 2510.17205): cross attention in a window of layers (Fig. 3, 9), with the
attention merged into one visual token or not (Tables 3, 9), visual self-attention (Table 3), the most or the least
attended tokens (Tables 1, 7), the visual cache while decoding (Tables 2, 10). A layer outside of `layers` runs dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..config import PruningConfig, check_choice, check_number
from ..policy import AttentionRule, KVRule, Policy, strongest
from ..probes import Attention, AttentionProbe, Probe
from .budget import check_in_decoder

KV = ("read", "all", "none")
ATTENDED = ("top", "bottom", "random")


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
    attended, share:
        text rows lose only this share of the visual tokens: the `top` or `bottom` ones by the last prompt token's
        attention in the masked layer itself (heads averaged), or `random` ones; decoding does not read them either
    """

    layers: tuple[int, ...] | None = None
    text: str = "remove"
    visual: str = "dense"
    merge_layers: tuple[int, ...] = ()
    sink_token: int = 0
    kv: str = "read"
    attended: str | None = None
    share: float | None = None

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
        self._check_attended()
        if odd := sorted(set(self.merge_layers) - set(self.layers)):
            raise ValueError(f"'merge_layers' names {odd}, which 'layers' ({list(self.layers)}) does not mask")

    def _check_attended(self):
        if (self.attended is None) != (self.share is None):
            raise ValueError(
                "method 'mask' needs 'attended' and 'share' together in the pruning config, got one of them"
            )
        if self.attended is None:
            return
        check_choice("attended", self.attended, ATTENDED)
        check_number("share", self.share, float, 0, 1)
        if self.text != "remove" or self.merge_layers or self.kv != "read":
            raise ValueError(
                "'attended' masks some tokens before the softmax and while decoding: leave 'text' at 'remove', "
                "'merge_layers' empty and 'kv' at 'read'"
            )

    def check_layers(self, num_layers: int) -> None:
        """Raise `ValueError` when a masked layer is not a layer of the model."""
        check_in_decoder(self, num_layers, "layers")

    def attention(self, layer: int) -> AttentionRule:
        """Mask, or merge, in masked layers."""
        if layer not in self.layers:
            return AttentionRule()
        text = "merge" if layer in self.merge_layers else "dense" if self.attended else self.text
        return AttentionRule(text=text, visual=self.visual, sink=self.sink_token)

    def cached(self, layer: int) -> KVRule:
        """Keep of masked layers what decoding may read."""
        if layer not in self.layers or self.kv == "all":
            return KVRule()
        if self.kv == "none":
            return KVRule(visual="none")
        if layer in self.merge_layers:
            return KVRule(visual="sink", sink=self.sink_token)
        return KVRule(visual="none") if self.text in ("remove", "zero") and not self.attended else KVRule()

    def start(self, num_layers: int) -> Policy:
        """Return a policy that keeps every token, and measures attention where some are masked by it."""
        return _Prompt(self) if self.attended else Policy()


class _Prompt(Policy):
    def __init__(self, config: Mask):
        self.config = config
        self.scores: np.ndarray | None = None

    def probe(self, layer: int) -> Probe | None:
        measured = layer + 1 in self.config.layers and self.config.attended != "random"
        return AttentionProbe(("last",), ahead=True) if measured else None

    def keep(self, layer: int, positions: np.ndarray, measured: Attention | None) -> None:
        self.scores = None if measured is None else measured.last

    def hidden(self, layer: int, positions: np.ndarray) -> np.ndarray | None:
        config, tokens = self.config, len(positions)
        if layer not in config.layers:
            return None
        scores = np.random.default_rng(0).permutation(tokens) if self.scores is None else self.scores
        return strongest(-scores if config.attended == "bottom" else scores, round(config.share * tokens))


def _layers(key: str, value: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{key!r} must be a list of layers, got {type(value).__name__} {value!r}")
    for layer in value:
        check_number(key, layer, int, 0)
    if len(set(value)) < len(value):
        raise ValueError(f"{key!r} names a layer twice: {list(value)}")
    return tuple(sorted(value))
