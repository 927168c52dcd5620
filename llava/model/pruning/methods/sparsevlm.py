"""SparseVLM (arXiv 2410.04417, ICML 2025): text raters score the visual tokens; what is pruned is recycled by merging.

Raters (section 3.2): before layer 0, text token t after the image weighs mean_j softmax_t(x_j · x_t) over the visual
tokens j; those above the mean weight rate. At a pruning layer, token j scores its attention from the raters, averaged
over raters and heads. How many stay (3.3): a number per pruning layer, or adaptively `scale · rank(P) + bias`, P
[raters × V] that attention. Recycling (3.4): of the tokens that do not stay, the share `recycle` with the highest
scores is clustered (density peaks over the ‖x − y‖ / √D of the layer's output, k nearest neighbours) into one token
per `cluster` of them, the mean of its members.

The original code (Gumpest/SparseVLMs): the first release computed the numbers from the rank and pruned at layer 19 as
well (`"layers": [2, 6, 15, 19]`); later ones look them up in tables for 192, 128, 96 or 64 tokens; the defaults here
are those of 192. Where no text token is above the mean its scores are not a number; here all text tokens rate then. It
breaks ties of density by noise of 1e-6, which has no effect in half precision (here the earlier token counts as the
denser one: one of the outcomes it can give in fp32). It puts merged tokens after the last kept visual one and counts
all positions again from 0: `"positions": "compact"` does both; by default tokens keep their positions here and a merged
one takes that of its cluster's centre. It forms the whole attention matrix in the pruning layers, and knows one image
and batch 1. SparseVLM+, which keeps positions, corrects the scores by rotary weights and does not merge, is not
included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import torch

from ..method import AtLeast, Count, Layer, Method, PromptState, Selection, Share, scaled_boundary, strongest
from ..packed import upload
from ..probes import LayerStates, Probe, attention_to_visual, rows_of

LAYERS, COUNTS, VISUAL_TOKENS = (2, 6, 15), (300, 200, 110), 576
"""The published layers, of 32, and numbers of tokens, of 576."""


@dataclass(frozen=True)
class SparseVLM(Method, name="sparsevlm"):
    """Keep what text raters look at, and merge the best of the rest.

    layers:
        layers that are measured and pruned after, from 0; None: 2, 6 and 15 of 32, scaled to the model's depth
    keep:
        visual tokens that stay after each, merged ones not counted; None: 300, 200, 110, or adaptively with `scale`
    visual_tokens:
        the number of visual tokens that `keep` is meant for; prompts with others scale it
    scale, bias:
        adaptive numbers instead of `keep`: int(rank · scale + bias)
    recycle, cluster:
        share of the pruned tokens that is merged (0: none), and about how many of them make one
    positions:
        `original`, or `compact` as in the original code
    """

    layers: tuple[Layer, ...] | None = None
    keep: tuple[Count, ...] | None = None
    visual_tokens: Annotated[int, AtLeast(1)] = VISUAL_TOKENS
    scale: Annotated[float, AtLeast(0)] | None = None
    bias: Annotated[float, AtLeast(0)] = 0.0
    recycle: Share = 0.3
    cluster: Annotated[int, AtLeast(1)] = 10
    positions: Literal["original", "compact"] = "original"

    def check(self) -> None:
        if self.scale is None and self.keep is None:
            object.__setattr__(self, "keep", COUNTS)
        if self.scale is not None and self.keep is not None:
            raise ValueError("'keep' and 'scale' both say how many tokens stay; give one of them")
        if self.layers is not None and (not self.layers or any(a >= b for a, b in pairwise(self.layers))):
            raise ValueError(f"'layers' must rise, and name at least one layer, got {list(self.layers)}")
        if self.layers is not None and self.keep is not None and len(self.keep) != len(self.layers):
            raise ValueError(f"'layers' names {len(self.layers)} and 'keep' {len(self.keep)} of them; give as many")

    def resolved(self, num_layers: int) -> Self:
        """Fill in `layers`: 2, 6 and 15 of 32 layers, scaled."""
        if self.layers is not None:
            return self
        layers = tuple(scaled_boundary(layer, num_layers) for layer in LAYERS)
        if len(set(layers)) < len(layers):
            raise ValueError(
                f"the model's {num_layers} layers are too few for pruning layers {list(layers)}; give 'layers'"
            )
        return replace(self, layers=layers)

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        if layer < 0:
            return Relevance()
        if layer not in self.layers:
            return None
        raters, left = prompt.memory["raters"], len(prompt.positions)
        if self.keep is None:
            return RaterProbe(raters, None, None)
        count = self._count(layer, prompt)
        return RaterProbe(raters, count, self._merged(left - count))

    def select(self, layer: int, prompt: PromptState, measured: np.ndarray | Rating | None) -> Selection | None:
        if layer < 0:
            prompt.memory["raters"] = tuple(map(int, measured))
        if layer < 0 or measured is None:
            return None
        left = len(prompt.positions)
        members, distance = measured.members.astype(int), measured.distance
        if self.keep is None:
            rank = int(measured.rank)
            if rank == left:
                return None
            count = min(int(rank * self.scale + self.bias), left - 1)
            merged = slice(count, count + self._merged(left - count))
            members, distance = members[merged], distance[merged, merged]
        else:
            count = self._count(layer, prompt)
        return self._recycle(strongest(measured.scores, count), members, distance)

    def _count(self, layer: int, prompt: PromptState) -> int:
        """How many stay after pruning layer `layer`, where `keep` says so."""
        count = round(self.keep[self.layers.index(layer)] * prompt.visual_tokens / self.visual_tokens)
        return min(count, len(prompt.positions) - 1)

    def _merged(self, pruned: int) -> int:
        """How many of the pruned tokens are merged."""
        return min(int(pruned * self.recycle) + 1, pruned) if self.recycle else 0

    def _recycle(self, kept: np.ndarray, members: np.ndarray, distance: np.ndarray) -> Selection:
        """Keep `kept` and the centres of the clusters of `members` [n] under `distance` [n, n]."""
        if not len(members):
            return Selection(kept)
        centres, cluster = density_peaks(distance, len(members) // self.cluster + 1)
        keep = kept.copy()
        keep[members[centres]] = True
        slots = np.flatnonzero(keep)
        if self.positions == "compact":
            own = np.concatenate([np.flatnonzero(kept), members[centres]])
            merged = np.arange(int(kept.sum()), len(own))
        else:
            own, merged = slots, np.searchsorted(slots, members[centres])
        weights = (cluster == np.arange(len(centres))[:, None]).astype(np.float32)
        weights /= weights.sum(1, keepdims=True)

        def rewrite(visual: torch.Tensor) -> torch.Tensor:
            """[V, D] → [slots, D]: the kept tokens as they are, each centre's place the mean of its cluster."""
            source, target, part, mix = (upload(array, visual.device) for array in (own, merged, members, weights))
            means = mix @ visual.index_select(0, part).float()
            return visual.index_select(0, source).index_copy(0, target, means.to(visual.dtype))

        return Selection(keep, rewrite, own)

    @classmethod
    def schedules(cls, num_layers: int) -> list[Method]:
        """The published layers, scaled, and half as deep."""
        published = tuple(scaled_boundary(layer, num_layers) for layer in LAYERS)
        choices = (published, tuple(layer // 2 for layer in published))
        return [cls(layers=places) for places in choices if len(set(places)) == 3 and places[-1] < num_layers]

    def with_budget(self, share: float, num_layers: int, visual_tokens: int) -> Method:
        last = share * VISUAL_TOKENS / COUNTS[-1]
        return replace(self, keep=tuple(min(VISUAL_TOKENS, round(last * count)) for count in COUNTS))


@dataclass(frozen=True)
class Relevance(Probe):
    """Weight of each text token after the first visual one: mean over visual tokens of a softmax over the text."""

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return [text tokens] of each prompt."""
        tokens, result = states.tokens, []
        for b in prompts:
            rows = upload(tokens.spans[b][0] + rows_of(tokens, b, "text"), tokens.hidden.device)
            text = tokens.hidden[0].index_select(0, rows).float()
            result.append((tokens.visual_hidden(b).float() @ text.T).softmax(-1).mean(0))
        return result

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the positions of the raters: text tokens above the mean weight, all where none is."""
        chosen = []
        for b, weights in zip(prompts, arrays, strict=True):
            above = weights > weights.mean()
            rows = rows_of(states.tokens, b, "text")[above if above.any() else slice(None)]
            chosen.append(states.tokens.position[states.tokens.spans[b][0] + rows])
        return chosen


class Rating(NamedTuple):
    """Scores [V], rank of the raters' attention [1], and distances [n, n] of the visual tokens `members` [n]."""

    scores: np.ndarray
    rank: np.ndarray
    members: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True)
class RaterProbe(Probe):
    """What raters (positions) attend to after a layer, and how far its candidates for merging lie apart.

    keep, merge: visual tokens that stay, and how many of the next best are candidates; None for a number that depends
    on the rank, where all are measured.
    """

    raters: tuple[int, ...]
    keep: int | None
    merge: int | None

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return the fields of `Rating` of each prompt, one after the other."""
        tokens, result = states.tokens, []
        for b in prompts:
            start, end = tokens.spans[b]
            rows = np.flatnonzero(np.isin(tokens.position[start:end], self.raters) & ~tokens.visual[start:end])
            attention = torch.cat(list(attention_to_visual(states, b, rows, "mean")))  # [R, V]
            scores = attention.mean(0)
            adaptive = self.keep is None
            rank = torch.linalg.matrix_rank(attention) if adaptive else scores.new_zeros(())
            order = scores.argsort(descending=True, stable=True)
            members = order if adaptive else order[self.keep : self.keep + self.merge]
            hidden = tokens.visual_hidden(b).index_select(0, members).float()
            distance = torch.cdist(hidden, hidden, compute_mode="donot_use_mm_for_euclid_dist")
            result += [scores, rank, members, distance / hidden.shape[-1] ** 0.5]
        return result

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[Rating]:
        """Group the fields again."""
        return [Rating(*arrays[4 * row : 4 * row + 4]) for row in range(len(prompts))]


def density_peaks(distance: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster by density peaks with nearest neighbours (DPC-KNN): distance [n, n] → centres [clusters], cluster [n].

    Density: exp(−mean d²) over the `clusters` nearest, itself included; of equal densities the earlier token's counts
    as the higher. Centres: the highest products of density and distance to the nearest denser token (the largest
    distance of all where there is none). Others join the nearest centre.
    """
    nearest = np.sort(distance, 1)[:, :clusters]
    density = np.exp(-(nearest**2).mean(1))
    place = np.empty(len(density), int)
    place[np.argsort(-density, kind="stable")] = np.arange(len(density))
    denser = place[None] < place[:, None]
    separation = np.where(denser, distance, distance.max()).min(1)
    centres = np.argsort(-separation * density, kind="stable")[:clusters]
    cluster = distance[centres].argmin(0)
    cluster[centres] = np.arange(len(centres))
    return centres, cluster
