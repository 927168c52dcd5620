"""Figures of experiments: lines over layers, bars by group, maps over two thresholds, histograms, the cross-modal map.

Every figure has a panel for the score, where the benchmark has one, and a panel for agreement with dense, whose Wilson
intervals are drawn. matplotlib is imported when a figure is made, so that `--help` need not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llava.eval.results.plots import draw_intervals, look, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
"""One line of an experiment's CSV; the first one is dense."""
Draw = Callable[[Sequence[Row]], "Figure"]

LAYER = "decoder layer, from 0"
DENSE_LEVEL = {"color": "0.45", "linestyle": "--", "linewidth": 1.2, "label": "dense"}
MEASURES = {"score": "score", "agreement": "same answer as dense (%)"}


def lines(kind: str, labels: Mapping[str, str], x: str = "k", xlabel: str = f"k ({LAYER})") -> Draw:
    """Return a figure of one line per value of column `kind` over column `x`; `labels`: value → legend."""

    def draw(rows: Sequence[Row]) -> Figure:
        figure, panels = _panels(rows, (5.2, 3.6))
        for axes, key in panels.items():
            for number, (value, label) in enumerate(labels.items()):
                line = [row for row in rows if row[kind] == value]
                places = [row[x] for row in line]
                axes.plot(places, [row[key] for row in line], label=label, markersize=4, linewidth=1.6, **look(number))
                _draw_intervals(axes, places, line, key, f"C{number}")
            axes.set(xlabel=xlabel)
            axes.set_ylim(bottom=0)
        figure.axes[0].legend(fontsize=8, frameon=False)
        return figure

    return draw


def bars(group: str, bar: str | Callable[[Row], str] | None = None) -> Draw:
    """Return a figure of bars in one group per value of column `group`, one bar per value of `bar`."""

    def name(row: Row) -> str | None:
        return bar(row) if callable(bar) else str(row[bar]) if bar else None

    def draw(rows: Sequence[Row]) -> Figure:
        cells = rows[1:]
        groups = list(dict.fromkeys(row[group] for row in cells))
        names = list(dict.fromkeys(map(name, cells)))
        width = 0.84 / len(names)
        figure, panels = _panels(rows, (max(5.2, 0.4 * len(cells) + 2), 3.6))
        for axes, key in panels.items():
            for number, label in enumerate(names):
                own = [row for row in cells if name(row) == label]
                places = np.array([groups.index(row[group]) for row in own]) + (number - (len(names) - 1) / 2) * width
                axes.bar(places, [row[key] for row in own], width * 0.94, color=f"C{number}", label=label)
                _draw_intervals(axes, places, own, key, "0.2")
            axes.set_xticks(range(len(groups)), map(str, groups))
            axes.set(xlabel=group)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        return figure

    return draw


def threshold_maps(rows: Sequence[Row]) -> Figure:
    """Draw maps over a grid's first two keys (means over the others), with FLOPs; lines over a single key."""
    down, *others = list(rows[0])[1 : list(rows[0]).index("score")]
    if not others:
        return lines("cell", {"pruned": "pruned"}, down, down)(rows)
    across, cells = others[0], rows[1:]
    xs, ys = (sorted({row[name] for row in cells}) for name in (across, down))
    measures = _measures(rows) | {"flops_share": "FLOPs, all tokens (% of dense)"}
    size = (len(measures) * (0.75 * len(xs) + 2.2), 0.5 * len(ys) + 1.8)
    figure, [panels] = new_figure(size, 1, len(measures))
    for axes, (key, title) in zip(panels, measures.items(), strict=True):
        values = [[np.mean([r[key] for r in cells if (r[across], r[down]) == (x, y)]) for x in xs] for y in ys]
        _heat_map(axes, np.array(values), "{:.1f}", cmap="viridis", origin="lower")
        axes.set_xticks(range(len(xs)), [f"{value:g}" for value in xs])
        axes.set_yticks(range(len(ys)), [f"{value:g}" for value in ys])
        axes.set(xlabel=across, ylabel=down, title=title)
    return figure


def exit_histogram(rows: Sequence[Row]) -> Figure:
    """Draw where prompts filtered and where they ended vision, in percent of the prompts."""
    figure, [[axes]] = new_figure((7, 3.4), 1, 1)
    for shift, key, label in ((-0.2, "filtered", "filter layer"), (0.2, "exited", "vision exit layer")):
        shares = [100 * row[key] / max(row["questions"], 1) for row in rows]
        axes.bar(np.arange(len(rows)) + shift, shares, 0.4, label=label)
    axes.set_xticks(range(len(rows)), [row["layer"] for row in rows])
    axes.set(xlabel=LAYER, ylabel="prompts (%)")
    axes.legend(fontsize=8, frameon=False)
    tidy(axes)
    return figure


def cross_modal_map(rows: Sequence[Row], title: str) -> Figure:
    """Draw the cross-modal map: one stripe per column, layers from left to right."""
    names = [name for name in rows[0] if name not in ("layer", "depth")]
    values = np.array([[np.nan if row[name] is None else row[name] for row in rows] for name in names], float)
    figure, [[axes]] = new_figure((max(7.0, 0.5 * len(rows) + 3), 0.55 * len(names) + 1.6), 1, 1)
    image = _heat_map(axes, values, "{:.0f}" if len(rows) <= 40 else "", cmap="magma", vmin=0, vmax=100)
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(0, len(rows), max(1, len(rows) // 16)))
    axes.set(xlabel=LAYER, title=title)
    figure.colorbar(image, ax=axes, label="% of dense; of prompts", shrink=0.9)
    return figure


def _measures(rows: Sequence[Row]) -> dict[str, str]:
    """Return the labels, by column, of measures that every row has (without a scorer there is no score)."""
    return {key: label for key, label in MEASURES.items() if all(row[key] is not None for row in rows)}


def _panels(rows: Sequence[Row], size: tuple[float, float]) -> tuple[Figure, dict[Axes, str]]:
    """Return a figure, and the column that each of its axes shows, with dense as a level."""
    measures = _measures(rows)
    figure, [grid] = new_figure((len(measures) * size[0], size[1]), 1, len(measures))
    panels = dict(zip(grid, measures, strict=True))
    for axes, key in panels.items():
        axes.axhline(rows[0][key], **DENSE_LEVEL)
        axes.set(ylabel=measures[key])
        tidy(axes)
    return figure, panels


def _draw_intervals(axes: Axes, places: Sequence[float], rows: Sequence[Row], key: str, color: str) -> None:
    """Draw the intervals that the rows have of this column."""
    if rows and f"{key}_low" in rows[0]:
        draw_intervals(
            axes, places, *([row[name] for row in rows] for name in (key, f"{key}_low", f"{key}_high")), color
        )


def _heat_map(axes: Axes, values: np.ndarray, number: str, **style: Any) -> Any:
    image = axes.imshow(values, aspect="auto", **style)
    low, high = image.get_clim()
    for (y, x), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "k" if value > (low + high) / 2 else "w"
            axes.text(x, y, number.format(value), ha="center", va="center", fontsize=7, color=color)
    return image
