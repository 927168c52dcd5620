"""Controls: what a pruning method has to beat, and what shows why it works. None of them is a published method.

`none` drops nothing, so that only the engine differs · `random` keeps tokens drawn at random · `disturb` puts noise in
place of chosen tokens, or removes them · `mask` lets rows of chosen layers read no visual token, and drops none. The
last two are what VisiPruner's analysis does (arXiv 2510.17205).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from ..method import EXIT, AttentionRule, Count, KVRule, Layer, Method, PromptState, Selection, Share, strongest
from ..packed import upload
from ..probes import Attention, AttentionProbe, Probe
from .ranking import check_exit, check_one_of, kept_count, rank_probe, rank_scores


@dataclass(frozen=True)
class NoPruning(Method, name="none"):
    """Keep every visual token in every layer; with `before`, what that stage alone does."""


@dataclass(frozen=True)
class RandomPruning(Method, name="random"):
    """Keep visual tokens of each prompt, drawn uniformly, from the layer after `layer` on.

    layer:
        last layer that runs with all visual tokens, from 0; None: no layer does, they are drawn before the decoder
    keep, share:
        visual tokens that stay, as a number or as a share of the prompt's; 0 drops vision there
    exit_layer:
        first layer without visual tokens; None: they stay to the end
    seed:
        of the draw; prompts of equal length keep the same places
    """

    layer: Layer | None = None
    keep: Count | None = None
    exit_layer: Layer | None = None
    seed: Count = 0
    share: Share | None = None

    def check(self) -> None:
        check_one_of(self, "keep", "share")
        check_exit(self.exit_layer, 0 if self.layer is None else self.layer + 1)

    @property
    def before_decoder(self) -> bool:
        """True where no layer is named."""
        return self.layer is None and self.exit_layer is None

    def select(self, layer: int, prompt: PromptState, measured: None) -> np.ndarray | Selection | None:
        if self.exit_layer is not None and layer + 1 == self.exit_layer:
            return EXIT
        if layer != (-1 if self.layer is None else self.layer):
            return None
        tokens = len(prompt.positions)
        drawn = np.random.default_rng(self.seed).permutation(tokens)[: kept_count(self, prompt)]
        return np.isin(np.arange(tokens), drawn)

    @classmethod
    def schedules(cls, num_layers: int) -> list[Method]:
        """Every layer but the last, and before the decoder."""
        return [cls(layer=layer, share=1.0) for layer in range(num_layers - 1)] + [cls(share=1.0)]

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        return replace(self, keep=None, share=share)


@dataclass(frozen=True)
class Mask(Method, name="mask"):
    """What visual tokens are to the rows of the masked layers (see `AttentionRule`); other layers run dense.

    The masks of VisiPruner's analysis: cross attention in a window of layers (Fig. 3, 9), with the attention merged
    into one visual token or not (Tables 3, 9), visual self-attention (Table 3), the most or the least attended tokens
    (Tables 1, 7), the visual cache while decoding (Tables 2, 10).

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

    layers: tuple[Layer, ...]
    text: Literal["remove", "zero", "half", "dense"] = "remove"
    visual: Literal["remove", "zero", "dense"] = "dense"
    merge_layers: tuple[Layer, ...] = ()
    sink_token: Count = 0
    kv: Literal["read", "all", "none"] = "read"
    attended: Literal["top", "bottom", "random"] | None = None
    share: Share | None = None

    def check(self) -> None:
        for key in ("layers", "merge_layers"):
            layers = getattr(self, key)
            if len(set(layers)) < len(layers):
                raise ValueError(f"{key!r} names a layer twice: {list(layers)}")
            object.__setattr__(self, key, tuple(sorted(layers)))
        if odd := sorted(set(self.merge_layers) - set(self.layers)):
            raise ValueError(f"'merge_layers' names {odd}, which 'layers' ({list(self.layers)}) does not mask")
        if (self.attended is None) != (self.share is None):
            raise ValueError(
                "method 'mask' needs 'attended' and 'share' together in the pruning config, got one of them"
            )
        if self.attended is not None and (self.text != "remove" or self.merge_layers or self.kv != "read"):
            raise ValueError(
                "'attended' masks some tokens before the softmax and while decoding: leave 'text' at 'remove', "
                "'merge_layers' empty and 'kv' at 'read'"
            )

    def attention(self, layer: int) -> AttentionRule:
        if layer not in self.layers:
            return AttentionRule()
        text = "merge" if layer in self.merge_layers else "dense" if self.attended else self.text
        return AttentionRule(text=text, visual=self.visual, sink=self.sink_token)

    def cached(self, layer: int) -> KVRule:
        if layer not in self.layers or self.kv == "all":
            return KVRule()
        if self.kv == "none":
            return KVRule(visual="none")
        if layer in self.merge_layers:
            return KVRule(visual="sink", sink=self.sink_token)
        return KVRule(visual="none") if self.text in ("remove", "zero") and not self.attended else KVRule()

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        measured = layer + 1 in self.layers and self.attended in ("top", "bottom")
        return AttentionProbe("last", ahead=True) if measured else None

    def select(self, layer: int, prompt: PromptState, measured: Attention | None) -> None:
        prompt.memory["scores"] = None if measured is None else measured.last

    def unread(self, layer: int, prompt: PromptState) -> np.ndarray | None:
        if self.attended is None or layer not in self.layers:
            return None
        tokens, scores = len(prompt.positions), prompt.memory["scores"]
        if scores is None:
            scores = np.random.default_rng(0).permutation(tokens)
        return strongest(-scores if self.attended == "bottom" else scores, round(self.share * tokens))


@dataclass(frozen=True)
class Disturb(Method, name="disturb"):
    """Disturb the `count` visual tokens that `rank` puts at one end.

    The control of a selection rule: if the tokens that it puts first carry what the answer needs, it is lost with them,
    and noise in their place does not bring it back.

    layer:
        the layer that is measured, from 0; the next one runs with disturbed tokens
    count, share:
        tokens to disturb, as a number or as a share of the prompt's; of fewer tokens, all
    rank:
        as in `attention_topk`: `influence`, or attention from `last`, `text` or `visual` rows; or `random`
    end:
        `top`, the highest scores, or `bottom`
    how:
        `noise`: a normal vector of the token's own root mean square replaces its hidden state; `remove`: it is dropped
    seed:
        of noise and random ranks; prompts with equally many visual tokens draw the same
    """

    layer: Layer
    count: Count | None = None
    share: Share | None = None
    rank: Literal["last", "text", "visual", "influence", "random"] = "influence"
    end: Literal["top", "bottom"] = "top"
    how: Literal["noise", "remove"] = "noise"
    seed: Count = 0

    def check(self) -> None:
        check_one_of(self, "count", "share")

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        return rank_probe(self.rank) if layer == self.layer and self.rank != "random" else None

    def select(self, layer: int, prompt: PromptState, measured: Any) -> Selection | None:
        if layer != self.layer:
            return None
        tokens = len(prompt.positions)
        if self.rank == "random":
            scores = np.random.default_rng(self.seed).permutation(tokens).astype(np.float32)
        else:
            scores = rank_scores(self.rank, measured)
        count = round(self.share * tokens) if self.count is None else self.count
        chosen = strongest(scores if self.end == "top" else -scores, min(count, tokens))
        if self.how == "remove":
            return Selection(~chosen)
        return Selection(np.ones(tokens, bool), _noise(chosen, self.seed))


def _noise(chosen: np.ndarray, seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what puts noise in place of the chosen of hidden states [V, D], drawn on the host: alike on any device."""

    def rewrite(hidden: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(seed)).to(hidden.device)
        scale = hidden.float().square().mean(-1, keepdim=True).sqrt()
        places = upload(chosen, hidden.device)[:, None]
        return torch.where(places, (drawn * scale).to(hidden.dtype), hidden)

    return rewrite
