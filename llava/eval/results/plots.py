"""Plots of runs in one style: accuracy against FLOPs, tokens per layer, histograms of pruning decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llava.cli import number, option

MARKERS = "osD^vPXh"
NAMED = (
    *("visipruner", "fastv", "pyramiddrop", "sparsevlm", "vtw", "fitprune", "visionzip", "divprune", "random"),
    *("downsample", "cdpruner", "dart", "vispruner", "holov", "scope", "prumerge", "hiprune", "plan", "topk-text"),
    *("topk-visual", "topk-influence", "random-before", "divprune-visipruner", "none", "blind", "attention_topk"),
)
"""Methods with a colour and marker of their own in every picture; a new one goes to the end."""
OTHERS = 40
"""Number of the first look of other things; colours and markers repeat together after as many."""
FRONT = {"color": "0.45", "linestyle": "--", "linewidth": 1.2}
DENSE_LEVEL = {"color": "0.6", "linestyle": ":", "linewidth": 1.4}
BAND = (10, 90)
"""Percentiles over prompts between which the band of tokens per layer lies."""


@dataclass(kw_only=True)
class PlotOptions:
    """How plots are written; the same for every command that draws."""

    format: Literal["png", "pdf", "svg"] = option("png", help="file format of plots (default png)")
    dpi: int = option(110, help="resolution of plots in dots per inch (default 110)", type=number(int, 10, 2400))

    def save(self, figure: Any, path: Path) -> Path:
        """Write a figure to `path`, given without suffix or with another format's; return where it is."""
        stem = path.with_suffix("") if path.suffix in (".png", ".pdf", ".svg") else path
        written = stem.with_name(f"{stem.name}.{self.format}")
        figure.savefig(written, dpi=self.dpi)
        return written


@dataclass(frozen=True)
class Drawn:
    """The plotted data of one run; arrays have one entry per prompt.

    name: in the legend, one look per name; flops_share: prefill FLOPs over all tokens, percent of dense; accuracy:
    percent, None where the answers cannot be judged; tokens: int [prompts, layers], those that enter each layer;
    filter_layers, exit_layers: int, -1 for none; kept: visual tokens left by the filter layer (all without one)
    """

    name: str
    dense: bool
    flops_share: float
    accuracy: float | None
    tokens: np.ndarray
    filter_layers: np.ndarray
    exit_layers: np.ndarray
    kept: np.ndarray


Panels = Mapping[str, Sequence[Drawn]]
"""Title of a panel → its runs."""


def summary_plot(
    rows: Mapping[str, Mapping[str, Any]], path: Path, title: str, options: PlotOptions | None = None
) -> Path:
    """Draw the mean number of tokens that enter each layer, and mean accuracy against prefill FLOPs; return the file.

    rows: by name: "tokens_per_layer" (list), "accuracy" (percent by benchmark), "flops_all_tokens" and
    "dense_flops_all_tokens"
    """
    figure, [[left, right]] = new_figure((11, 4.2), 1, 2, width_ratios=(3, 2))
    own = looks(list(rows))
    for place, (name, row) in enumerate(rows.items()):
        tokens = row["tokens_per_layer"]
        left.plot(range(len(tokens)), tokens, label=name, linewidth=2, markersize=5, **own[name])
        accuracy = sum(row["accuracy"].values()) / len(row["accuracy"])
        share = 100 * row["flops_all_tokens"] / row["dense_flops_all_tokens"]
        right.plot([share], [accuracy], linestyle="", label=name, markersize=9, **own[name])
        right.annotate(name, (share, accuracy), xytext=(8, (5, -12)[place % 2]), textcoords="offset points", fontsize=9)
    left.set(title="tokens kept per layer, mean")
    _token_axes(left, len(next(iter(rows.values()))["tokens_per_layer"]))
    left.legend(frameon=False)
    right.set(ylabel="accuracy, mean of benchmarks (%)", title="accuracy against cost")
    _accuracy_axes(right)
    figure.suptitle(title)
    return (options or PlotOptions()).save(figure, path)


def accuracy_plot(panels: Panels, path: Path, title: str, options: PlotOptions) -> Path | None:
    """Draw accuracy against FLOPs, a panel per benchmark: every run, the Pareto front, the dense run's level.

    Returns the file; None, with nothing drawn, if no run has an accuracy.
    """
    judged = _with(panels, lambda run: run.accuracy is not None)
    if not judged:
        return None
    looks = _looks(panels, judged)
    figure, axes_of = _grid(len(judged), 3, (4.2, 3.6))
    for axes, (name, runs) in zip(axes_of, judged.items(), strict=True):
        points = [(run.flops_share, run.accuracy) for run in runs]
        for run in runs:
            if run.dense:
                axes.axhline(run.accuracy, zorder=1, **DENSE_LEVEL)
            axes.plot(run.flops_share, run.accuracy, linestyle="", alpha=0.85, **_big(looks[run.name]))
        axes.plot(*zip(*(points[index] for index in pareto_front(points)), strict=True), zorder=2, **FRONT)
        axes.set(title=name, ylabel="accuracy (%)")
        _accuracy_axes(axes)
    handles = {name: _big(look) | {"linestyle": ""} for name, look in looks.items()}
    legend(figure, handles | {"Pareto front": FRONT, "level of dense": DENSE_LEVEL})
    figure.suptitle(f"{title}: accuracy against FLOPs")
    return options.save(figure, path)


def tokens_plot(panels: Panels, path: Path, title: str, options: PlotOptions) -> Path | None:
    """Draw the tokens that enter each layer, a panel per benchmark: the mean, and a band over the prompts."""
    looks = _looks(panels, panels)
    figure, axes_of = _grid(len(panels), 3, (5.0, 3.6))
    for axes, (name, runs) in zip(axes_of, panels.items(), strict=True):
        for run in runs:
            layers = range(run.tokens.shape[1])
            low, high = np.percentile(run.tokens, BAND, axis=0)
            axes.fill_between(layers, low, high, color=looks[run.name]["color"], alpha=0.15, linewidth=0)
            axes.plot(layers, run.tokens.mean(0), linewidth=1.8, markersize=4, **looks[run.name])
        axes.set(title=name)
        _token_axes(axes, runs[0].tokens.shape[1])
    legend(figure, looks)
    figure.suptitle(f"{title}: tokens per layer, mean and {BAND[0]}th to {BAND[1]}th percentile over prompts")
    return options.save(figure, path)


def decisions_plot(panels: Panels, path: Path, title: str, options: PlotOptions) -> Path | None:
    """Draw histograms of filter layer, exit layer and tokens kept, a row per benchmark; None if no run pruned."""
    decided = _with(panels, lambda run: (run.filter_layers >= 0).any() or (run.exit_layers >= 0).any())
    if not decided:
        return None
    looks = _looks(panels, decided)
    figure, grid = new_figure((13, 2.9 * len(decided) + 1), len(decided), 3)
    for line, (name, runs) in zip(grid, decided.items(), strict=True):
        layers = runs[0].tokens.shape[1]
        _layer_bars(line[0], {run.name: run.filter_layers for run in runs}, layers, looks)
        _layer_bars(line[1], {run.name: run.exit_layers for run in runs}, layers, looks)
        _kept_steps(line[2], {run.name: run.kept for run in runs}, looks)
        named = ("filter layer", "vision exit layer", "visual tokens kept (dashed: as many in every prompt)")
        for axes, what in zip(line, named, strict=True):
            axes.set(title=name, xlabel=what, ylabel="prompts (%)")
            tidy(axes)
    legend(figure, {name: {"color": look["color"], "linewidth": 5} for name, look in looks.items()})
    figure.suptitle(f"{title}: what pruning decided")
    return options.save(figure, path)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto-optimal points (cost, gain), cheapest first."""
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def _layer_bars(axes, by_name: Mapping[str, np.ndarray], layers: int, looks: Mapping[str, dict]) -> None:
    """Bars side by side: the share of prompts at each layer, and at none."""
    width = 0.84 / len(by_name)
    places = np.array([*range(layers), layers + 0.5])
    for place, (name, values) in enumerate(by_name.items()):
        counts = np.bincount(np.where(values < 0, layers, values), minlength=layers + 1)
        offset = (place - (len(by_name) - 1) / 2) * width
        axes.bar(places + offset, 100 * counts / len(values), width, color=looks[name]["color"])
    step = max(1, layers // 12)
    axes.set_xticks([*range(0, layers, step), layers + 0.5], [*map(str, range(0, layers, step)), "none"])


def _kept_steps(axes, by_name: Mapping[str, np.ndarray], looks: Mapping[str, dict]) -> None:
    """Histograms as outlines on common bins; a vertical line for a run that keeps as many tokens in all prompts."""
    varied = {name: kept for name, kept in by_name.items() if kept.min() < kept.max()}
    for name in by_name.keys() - varied.keys():
        axes.axvline(by_name[name][0], color=looks[name]["color"], linestyle="--", linewidth=1.5)
    if varied:
        edges = whole_bins(np.concatenate(list(varied.values())))
    for name, kept in varied.items():
        axes.stairs(100 * np.histogram(kept, edges)[0] / len(kept), edges, color=looks[name]["color"], linewidth=1.8)
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))


def whole_bins(values: np.ndarray, most: int = 24) -> np.ndarray:
    """Edges of at most `most` bins for whole numbers, each as many of them wide: n - 0.5, n - 0.5 + width, …"""
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // most)
    return low - 0.5 + width * np.arange(-(-(high - low + 1) // width) + 1)


def draw_intervals(
    axes: Any, x: Sequence[float], y: Sequence[float], low: Sequence[float], high: Sequence[float], color: str
) -> None:
    """Draw intervals as bars around points; one that is NaN is left out."""
    ends = np.abs(np.array([np.subtract(y, low), np.subtract(high, y)], dtype=float))
    axes.errorbar(x, y, yerr=ends, fmt="none", ecolor=color, elinewidth=1.2, capsize=3, alpha=0.7, zorder=1)


def new_figure(size: tuple[float, float], lines: int, columns: int, **options: Any):
    """A figure of `size` inches and its axes, [lines, columns]."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(lines, columns, squeeze=False, **options)


def _grid(panels: int, widest: int, size: tuple[float, float]):
    """A figure with `panels` axes of `size`, at most `widest` per line, and room for a title and a legend."""
    columns = min(widest, panels)
    lines = -(-panels // columns)
    figure, grid = new_figure((max(6.0, size[0] * columns), size[1] * lines + 1), lines, columns)
    for axes in grid.ravel()[panels:]:
        axes.set_visible(False)
    return figure, grid.ravel()[:panels]


def look(number: int) -> dict[str, Any]:
    """Colour and marker of the n-th of several things."""
    return {"color": f"C{number % 10}", "marker": MARKERS[number % len(MARKERS)]}


def looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker by name: a method's own, also with a target behind it ("fastv-50"), or the next ones."""
    bases = {name: name if name in NAMED else name.rpartition("-")[0] for name in names}
    others = [name for name, base in bases.items() if base not in NAMED]
    numbers = {
        name: NAMED.index(base) if base in NAMED else OTHERS + others.index(name) for name, base in bases.items()
    }
    return {name: look(number) for name, number in numbers.items()}


def _looks(panels: Panels, shown: Panels) -> dict[str, dict[str, Any]]:
    """One look per name over all `panels`, for the names in `shown`; dense runs are black stars."""
    runs = {run.name: run.dense for runs in panels.values() for run in runs}
    own = looks([name for name, dense in runs.items() if not dense])
    star = {"color": "black", "marker": "*"}
    names = {run.name for runs in shown.values() for run in runs}
    return {name: star if dense else own[name] for name, dense in runs.items() if name in names}


def _with(panels: Panels, wanted: Callable[[Drawn], bool]) -> Panels:
    """The runs that are wanted, and the panels that have any."""
    chosen = {name: [run for run in runs if wanted(run)] for name, runs in panels.items()}
    return {name: runs for name, runs in chosen.items() if runs}


def _big(look: dict[str, Any]) -> dict[str, Any]:
    return look | {"markersize": 14 if look["marker"] == "*" else 8}


def legend(figure: Any, looks: Mapping[str, dict[str, Any]]) -> None:
    """One legend below the whole figure: name → look."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=int(figure.get_figwidth() // 1.6), frameon=False)


def _token_axes(axes, layers: int) -> None:
    axes.set(xlabel="decoder layer", ylabel="tokens entering the layer")
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(0, layers, max(1, layers // 16)))
    tidy(axes)


def _accuracy_axes(axes) -> None:
    axes.set(xlabel="prefill FLOPs, all tokens (% of dense)")
    axes.margins(0.18)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, high - 12), high)  # a tenth of a point is no difference: do not draw it as one
    axes.set_xlim(0, 115)
    tidy(axes)


def tidy(axes: Any) -> None:
    """No frame at the top and the right, and a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
