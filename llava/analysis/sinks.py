"""Attention sinks: L1 norms of value vectors and the attention that their tokens receive (VisiPruner, App. E, F).

An attention sink has a high attention weight and a short value vector. `find_sinks` combines the two; `remove_sinks`
masks sinks and returns where the attention goes instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from llava.model.pruning.methods import Replay
from llava.model.pruning.probes import LayerStates, Probe
from llava.model.pruning.record import Several

from .arrays import NamedArray
from .attention import Attention, AttentionRows
from .drawing import tidy
from .recording import record

WHERE = ("first token", "other text", "removed", "other visual")


@dataclass(frozen=True)
class ValueNorms(Probe):
    """L1 norm of each token's value vector in one layer: fp32 [Hkv, T_l], per key–value head."""

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return [Hkv, T_l] of each prompt."""
        spans = (slice(*states.tokens.spans[prompt]) for prompt in prompts)
        return [states.value[0, :, span].float().abs().sum(-1) for span in spans]

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return one array per prompt."""
        return list(arrays)


@dataclass(frozen=True, eq=False)
class ValueMap:
    """Value norms and attention of every token at every layer, nothing pruned.

    `norms`: L1 norm of the value vector, axes (layer, kv_head, token); `attention`: what the token receives from a
    chosen one, averaged over heads, axes (layer, token); `visual`: int [V], which of the tokens are visual.
    """

    norms: NamedArray
    attention: NamedArray
    visual: np.ndarray


def value_norms(
    model: torch.nn.Module, inputs: Mapping[str, Any], position: int = -1, *, visual_mask: torch.Tensor | None = None
) -> list[ValueMap]:
    """Measure value norms and the attention of the token at `position`; one map per prompt.

    Raises:
        ValueError: a position that a prompt does not have, and a prompt without an image.

    """
    asked = Several(ValueNorms(), AttentionRows.of([position]))
    maps = []
    for prompt, _ in record(model, inputs, asked, visual_mask=visual_mask):
        layers = [prompt.measured[layer] for layer in sorted(prompt.measured)]
        norms = np.stack([norms for norms, _ in layers])
        attention = np.stack([rows.weights[0].mean(0) for _, rows in layers])
        axes, labels = ("layer", "kv_head", "token"), {"layer": sorted(prompt.measured)}
        maps.append(ValueMap(NamedArray(norms, axes, labels), NamedArray(attention, axes[::2], labels), prompt.visual))
    return maps


def find_sinks(found: ValueMap, layer: int, *, attention: float = 4.0, norm: float = 0.75) -> list[int]:
    """Return the positions of a layer's visual attention sinks, the most attended first.

    A visual token is one when it receives more than `attention` times the mean over visual tokens, and the L1 norm of
    its value vector (heads added) is below `norm` times their median. The paper gives no bounds (sinks' norms are
    significantly lower); both are choices of this project.
    """
    place = list(found.norms.labels.get("layer", range(found.norms.size("layer")))).index(layer)
    received = found.attention.values[place, found.visual]
    norms = found.norms.values[place].sum(0)[found.visual]
    sinks = (received > attention * received.mean()) & (norms < norm * np.median(norms))
    order = np.argsort(-received, kind="stable")
    return found.visual[order[sinks[order]]].tolist()


def remove_sinks(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    sinks: Sequence[int],
    position: int = -1,
    *,
    visual_mask: torch.Tensor | None = None,
) -> NamedArray:
    """Mask visual tokens of one prompt; return where the attention of the token at `position` goes instead.

    sinks:
        positions of visual tokens; the others keep their positions

    Returns shares of attention, heads averaged, axes (run, layer, where): the dense run and the one without them; to
    the first token, the other text, the tokens that are removed, the other visual tokens.

    Raises:
        ValueError: more than one prompt, and positions that hold no visual token.

    """
    probe = AttentionRows.of([position])
    dense = record(model, inputs, probe, visual_mask=visual_mask)
    if len(dense) != 1:
        raise ValueError(f"sinks are positions of one prompt, but the batch has {len(dense)}: give them one by one")
    visual = dense[0][0].visual
    lost = sorted(set(sinks) - set(visual.tolist()))
    if lost:
        raise ValueError(f"position {lost[0]} holds no visual token, so that it cannot be removed as a sink")
    if position >= 0 and position in visual:
        raise ValueError(f"position {position} is visual: give a text token, whose attention is followed")
    if len(set(sinks)) == len(visual):
        raise ValueError(f"all {len(visual)} visual tokens were given as sinks: nothing of the image would be left")
    plan = Replay(cuts=((-1, tuple(place for place in visual.tolist() if place not in set(sinks))),))
    without = record(model, inputs, probe, plan, visual_mask)
    shares = np.zeros((2, len(dense[0][0].measured), len(WHERE)), np.float32)
    for run, [(prompt, _)] in enumerate((dense, without)):
        for layer, rows in prompt.measured.items():
            shares[run, layer] = _shares(rows, visual, sinks)
    return NamedArray(shares, ("run", "layer", "where"), {"run": ("dense", "without them"), "where": WHERE})


def _shares(rows: Attention, visual: np.ndarray, sinks: Sequence[int]) -> list[float]:
    weights = rows.weights[0].mean(0)
    first, seen, sink = rows.columns == 0, np.isin(rows.columns, visual), np.isin(rows.columns, list(sinks))
    return [float(weights[kind].sum()) for kind in (first & ~seen, ~first & ~seen, sink, seen & ~sink)]


def plot_values(found: ValueMap, layer: int, sinks: Sequence[int] = ()) -> Figure:
    """Draw one layer's value norms and attention over the visual tokens, sinks marked: the paper's Figure of App. E."""
    norms = found.norms.values[layer].sum(0)[found.visual]
    received = found.attention.values[layer, found.visual]
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, values, name in zip(
        figure.subplots(2, 1, sharex=True), (norms, received), ("L1 norm of V", "attention weight"), strict=True
    ):
        axes.plot(values, color="0.3", linewidth=1)
        marked = np.searchsorted(found.visual, sorted(sinks))
        axes.plot(marked, values[marked], "o", color="C3", markersize=5, label="sinks" if len(marked) else None)
        axes.set(ylabel=name, xlim=(0, len(values) - 1), ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="visual token, in the order of the prompt")
    if len(sinks):
        axes.legend(frameon=False)
    figure.suptitle(f"layer {layer}")
    return figure


def plot_shares(shares: NamedArray, title: str = "") -> Figure:
    """Draw where attention goes, layer by layer, for both runs of `remove_sinks`."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, run, values in zip(figure.subplots(1, 2, sharey=True), shares.labels["run"], shares.values, strict=True):
        base = np.zeros(len(values))
        for where, part, color in zip(shares.labels["where"], values.T, ("0.45", "0.75", "C3", "C0"), strict=True):
            axes.bar(range(len(values)), part, bottom=base, color=color, label=where)
            base += part
        axes.set(title=run, xlabel="decoder layer", ylim=(0, 1))
        tidy(axes, len(values))
    figure.axes[0].set_ylabel("share of attention")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False)
    if title:
        figure.suptitle(title)
    return figure
