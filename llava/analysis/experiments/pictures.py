"""Pictures that the experiments share: lines over layers, bars, maps of two thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .plan import DENSE, Row

LEVEL = {"color": "0.45", "linestyle": "--", "linewidth": 1.2}
MEASURES = (("score", "score"), ("agreement", "same answer as dense (%)"))


def measures(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the measures that the rows have, (key, label): a benchmark without a scorer has no score."""
    return [(key, label) for key, label in MEASURES if all(row[key] is not None for row in rows)]


def line_picture(rows: Sequence[Row], kind: str, x: str, labels: Mapping[str, str], xlabel: str) -> Figure:
    """Draw a line for each value of `kind`, over `x`; the dense run's level dashed. A panel a measure."""
    keys = measures(rows)
    figure, panels = _panels(len(keys), (5.2, 3.6))
    dense = rows[0]
    for axes, (key, label) in zip(panels, keys, strict=True):
        for number, (value, name) in enumerate(labels.items()):
            line = [row for row in rows if row[kind] == value]
            axes.plot(
                [row[x] for row in line],
                [row[key] for row in line],
                marker="osD^vPXh"[number % 8],
                markersize=4,
                linewidth=1.6,
                color=f"C{number}",
                label=name,
            )
        axes.axhline(dense[key], label=DENSE, **LEVEL)
        axes.set(xlabel=xlabel, ylabel=label)
        axes.set_ylim(bottom=0)
        tidy(axes)
    panels[0].legend(fontsize=8, frameon=False)
    return figure


def bar_picture(rows: Sequence[Row], group: str, bar: str) -> Figure:
    """Draw bars in groups; the dense run's level dashed. A panel a measure."""
    keys = measures(rows)
    cells = [row for row in rows[1:]]
    groups = list(dict.fromkeys(row[group] for row in cells))
    bars = list(dict.fromkeys(row[bar] for row in cells))
    width = 0.84 / len(bars)
    figure, panels = _panels(len(keys), (max(5.2, 0.4 * len(cells) + 2), 3.6))
    for axes, (key, label) in zip(panels, keys, strict=True):
        for number, name in enumerate(bars):
            own = [(groups.index(row[group]), row[key]) for row in cells if row[bar] == name]
            places = np.array([place for place, _ in own]) + (number - (len(bars) - 1) / 2) * width
            axes.bar(places, [value for _, value in own], width * 0.94, color=f"C{number}", label=str(name))
        axes.axhline(rows[0][key], label=DENSE, **LEVEL)
        axes.set_xticks(range(len(groups)), [str(name) for name in groups])
        axes.set(xlabel=group, ylabel=label)
        tidy(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


def map_picture(rows: Sequence[Row], across: str, down: str, keys: Sequence[tuple[str, str]]) -> Figure:
    """Draw a map for each of `keys`, (column, title): its mean over the rows that share `across` and `down`."""
    cells = rows[1:]
    columns, lines = (sorted({row[name] for row in cells}) for name in (across, down))
    figure, panels = _panels(len(keys), (0.75 * len(columns) + 2.2, 0.5 * len(lines) + 1.8))
    for axes, (key, title) in zip(panels, keys, strict=True):
        values = np.array(
            [[np.mean([r[key] for r in cells if (r[across], r[down]) == (x, y)]) for x in columns] for y in lines]
        )
        axes.imshow(values, cmap="viridis", aspect="auto", origin="lower")
        middle = (values.max() + values.min()) / 2
        for (y, x), value in np.ndenumerate(values):
            axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=8, color="wk"[int(value > middle)])
        axes.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
        axes.set_yticks(range(len(lines)), [f"{value:g}" for value in lines])
        axes.set(xlabel=across, ylabel=down, title=title)
    return figure


def tidy(axes: Axes) -> None:
    """Leave out what carries nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _panels(count: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=(count * size[0], size[1]), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]
