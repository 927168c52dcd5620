"""Which visual tokens reach the last prompt token: cosine and L2 influence at every layer (VisiPruner, section 4).

    found = influence_map(model, inputs)[0]             # nothing pruned
    found = influence_map(model, inputs, config)[0]     # in a pruned run; found.trace has its decisions

The figures are the engine's own (`llava.model.pruning.influence`), measured at every layer instead of the probed ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from llava.model.pruning import PruningConfig
from llava.model.pruning.influence import Influence
from llava.model.pruning.record import Recorded
from llava.model.pruning.trace import PruningTrace

from .arrays import NamedArray
from .drawing import draw_over, outline, tidy
from .recording import record
from .views import View


@dataclass(frozen=True, eq=False)
class InfluenceMap:
    """Influence of a prompt's visual tokens on its last token, axes (layer, token); NaN where a token was pruned.

    cosine, l2, attention:
        as in `Measurement`: cos(O, O − c_j), ‖c_j‖₂, and the mean attention over heads
    trace:
        what the engine did with the prompt; its `probes` are of every layer that had visual tokens
    """

    cosine: NamedArray
    l2: NamedArray
    attention: NamedArray
    trace: PruningTrace


def influence_map(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    config: PruningConfig | Mapping[str, Any] | str | None = None,
    *,
    visual_mask: torch.Tensor | None = None,
) -> list[InfluenceMap]:
    """Measure influence at every layer; one map per prompt, tokens labelled with their positions.

    With a `config` the prompt is pruned: each layer is measured on the tokens that it runs with, with dense attention
    from its hidden states, even where it merges or skips the image.

    Raises:
        ValueError: what `prune` refuses, and a prompt without an image.

    """
    return [map_of(*prompt) for prompt in record(model, inputs, Influence(), config, visual_mask)]


def map_of(prompt: Recorded, trace: PruningTrace) -> InfluenceMap:
    """Return what a `recorder` of `Influence` measured of one prompt as arrays."""
    shape = (len(trace.tokens_per_layer), len(prompt.visual))
    figures = np.full((3, *shape), np.nan, np.float32)
    for layer, measured in prompt.measured.items():
        places = np.searchsorted(prompt.visual, prompt.present[layer])
        figures[:, layer, places] = (measured.cosine, measured.l2, measured.attention)
    labels = {"token": prompt.visual.tolist()}
    return InfluenceMap(*(NamedArray(figure, ("layer", "token"), labels) for figure in figures), trace)


def plot_influence(found: InfluenceMap, config: PruningConfig | None = None, title: str = "") -> Figure:
    """Draw the smallest cosine and the largest L2 of every layer, with the thresholds and decisions of a config."""
    layers = found.cosine.size("layer")
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, values, name, key in (
        (left, _extreme(found.cosine.values, np.nanmin), "smallest cosine", "layer_threshold"),
        (right, _extreme(found.l2.values, np.nanmax), "largest L2", "tokens_threshold"),
    ):
        axes.plot(values, marker="o", color="black", label=f"{name} over visual tokens")
        threshold = getattr(config, key, None)
        if threshold is not None:
            axes.axhline(threshold, color="C3", linestyle=":", label=f"{key} {threshold}")
        for layer, decided, colour in (
            (found.trace.filter_layer, "filter layer", "C0"),
            (found.trace.exit_layer, "vision exit", "C2"),
        ):
            if layer is not None:
                axes.axvline(layer, color=colour, linestyle="--", label=f"{decided} {layer}")
        axes.set(xlabel="decoder layer", ylabel=name)
        axes.legend(fontsize=7, frameon=False)
        tidy(axes, layers)
    right.set_yscale("log")
    if title:
        figure.suptitle(title)
    return figure


def plot_kept(found: InfluenceMap, view: View, image: int = 0, *, thumbnails: bool = False) -> Figure:
    """Draw L2 influence at the filter layer over a picture, and a frame around every visual token that was kept.

    Raises:
        ValueError: a run in which nothing was filtered.

    """
    trace, layer = found.trace, found.trace.filter_layer
    if layer is None:
        raise ValueError("no layer filtered visual tokens in this run: measure it with a config that does")
    figure = Figure(figsize=(4.2, 4.4), layout="constrained")
    axes = figure.subplots()
    draw_over(axes, view, found.l2.values[layer], image, thumbnails=thumbnails)
    positions = found.l2.labels["token"]
    kept = set(trace.kept)
    for panel in view.of(image, thumbnails):
        for token, box in panel.boxes().items():
            if positions[token] in kept:
                outline(axes, box, view.pictures[image].size, edgecolor="deepskyblue", linewidth=1.2)
    axes.set_title(f"{len(kept)} of {trace.visual_tokens} visual tokens kept after layer {layer}", fontsize=10)
    return figure


def plot_tokens(trace: PruningTrace, title: str = "") -> Figure:
    """Draw the numbers of text and visual tokens that enter each layer, and how the layer treats the image."""
    layers = range(len(trace.tokens_per_layer))
    visual = np.array(trace.visual_per_layer)
    text = np.array(trace.tokens_per_layer) - visual
    skipped = np.array([not rule.dense for rule in trace.rules])
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.bar(layers, text, color="0.75", label="text")
    axes.bar(layers, visual * ~skipped, bottom=text, color="C0", label="visual")
    axes.bar(
        layers, visual * skipped, bottom=text, color="C0", alpha=0.35, hatch="//", label="visual, not read by text"
    )
    axes.set(xlabel="decoder layer", ylabel="tokens entering the layer", title=title)
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    tidy(axes, len(layers))
    return figure


def _extreme(values: np.ndarray, choose: Any) -> np.ndarray:
    """Return the extreme value of each layer, NaN where a layer had no visual tokens."""
    return np.array([np.nan if np.isnan(row).all() else choose(row) for row in values])
