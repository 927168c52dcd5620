"""The methods with a schedule of their own: what of it is fixed (the layers), and the one knob that sets their FLOPs.

A knob runs from 0, as few tokens as the method can keep, to 1, as many. A method has several knobs where the layers can
be chosen: which of them is best at a budget is decided on tuning questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llava.model.pruning import PruningConfig
from llava.model.pruning.method import scaled_boundary
from llava.model.pruning.methods import (
    VTW,
    AttentionTopK,
    DivPrune,
    FastV,
    PyramidDrop,
    RandomPruning,
    SparseVLM,
    VisionZip,
)

Setting = Callable[[float], PruningConfig]
MERGED = 10 / 64
"""Share of VisionZip's tokens that are merged ones, as published: 10 of 64."""
SPARSE_LAYERS, SPARSE_KEEP = (2, 6, 15), (300, 200, 110)
"""SparseVLM's published layers, of 32, and numbers of tokens, of 576."""


@dataclass(frozen=True)
class Knob:
    """A method with its layers fixed: `setting(x)` keeps more the higher x in [0, 1] is.

    told:
        what is fixed, in words
    counted:
        another method's setting that keeps as many tokens and is easier to count: one that needs no image encoder;
        None for its own
    """

    told: str
    setting: Setting
    counted: Setting | None = None


def knobs(layers: int, visual_tokens: int) -> Mapping[str, list[Knob]]:
    """Return the knobs of every such method by its name in the tables.

    layers: of the decoder; visual_tokens: of an image
    """
    last = range(layers - 1)
    found = {
        "fastv": [Knob(f"k {k}", _fastv(k)) for k in range(1, layers)],
        "pyramiddrop": [_pyramid(layers, step) for step in range(max(layers // 4, 1), 0, -1)],
        "sparsevlm": _sparse(layers),
        "vtw": [Knob("", lambda x: VTW(k=round(x * (layers - 1))))],
    }
    for rank in ("text", "visual", "influence"):
        found[f"topk-{rank}"] = [Knob(f"layer {layer}", _topk(layer, rank), _random(layer)) for layer in last]
    found["visionzip"] = [_zip(visual_tokens)]
    found["divprune"] = [Knob("", lambda x: DivPrune(share=x))]
    found["random"] = [Knob(f"layer {layer}", _random(layer)) for layer in last]
    found["random-before"] = [Knob("", _random(None))]
    return found


def _fastv(k: int) -> Setting:
    return lambda x: FastV(k=k, r=1 - x)


def _topk(layer: int, rank: str) -> Setting:
    return lambda x: AttentionTopK(layer=layer, share=x, rank=rank)


def _random(layer: int | None) -> Setting:
    return lambda x: RandomPruning(layer=layer, share=x)


def _pyramid(layers: int, step: int) -> Knob:
    """Stages that begin every `step` layers; each keeps the share x of the one before (published: a half)."""
    starts = [layer for layer in (step, 2 * step, 3 * step) if layer < layers]
    return Knob(
        f"stages at {', '.join(map(str, starts))}",
        lambda x: PyramidDrop(layers=starts, ratios=[x**stage for stage in range(1, len(starts) + 1)]),
    )


def _sparse(layers: int) -> list[Knob]:
    """The published layers, scaled, and half as deep; the published numbers of tokens, scaled together."""
    published = tuple(scaled_boundary(layer, layers) for layer in SPARSE_LAYERS)
    choices = [places for places in (published, tuple(layer // 2 for layer in published)) if len(set(places)) == 3]

    def knob(places: tuple[int, ...]) -> Knob:
        def setting(x: float) -> PruningConfig:
            keep = [min(576, round(x * 576 / SPARSE_KEEP[-1] * count)) for count in SPARSE_KEEP]
            return SparseVLM(layers=places, keep=keep)

        return Knob(f"layers {', '.join(map(str, places))}", setting)

    return [knob(places) for places in choices if places[-1] < layers]


def _zip(visual_tokens: int) -> Knob:
    """Dominant and merged tokens in the published proportion; random ones are as many."""

    def count(x: float) -> int:
        return max(2, round(x * visual_tokens))

    def setting(x: float) -> PruningConfig:
        merged = round(MERGED * count(x))
        return VisionZip(dominant=count(x) - merged, contextual=merged)

    return Knob("", setting, lambda x: RandomPruning(share=min(1.0, count(x) / visual_tokens)))
