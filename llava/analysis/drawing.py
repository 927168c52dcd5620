"""Figures that the analyses share: numbers over a picture, lines over layers, words in a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .arrays import NamedArray
from .lens import Words
from .views import Box, View

COLORS = "inferno"


def plot_over_picture(
    array: NamedArray, view: View, image: int = 0, *, title: str = "", shared: bool = False, thumbnails: bool = False
) -> Figure:
    """Draw one number per visual token over a picture of the prompt, one panel per place of the other axis.

    array:
        axes (token,) or (…, token), its tokens the prompt's visual ones in order; NaN (pruned) is left clear
    shared:
        one colour scale for all panels; else each has its own, whose highest value is in its title
    thumbnails:
        the tokens of the picture's thumbnail, where a family has one, instead of those of its tiles

    Raises:
        ValueError: an array of other axes, or without a number for each visual token.

    """
    if array.axes[-1] != "token" or array.values.ndim > 2:
        raise ValueError(f"expected axes (token,) or (…, token), got {array.axes}: take a mean, or .at(…), first")
    name = array.axes[0]
    rows = np.atleast_2d(array.values)
    labels = array.labels.get(name, range(len(rows))) if array.values.ndim == 2 else [""]
    columns = min(6, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(2.1 * columns, 2.3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(rows) :]:
        axes.set_visible(False)
    top = np.nanmax(rows) if shared and not np.isnan(rows).all() else None
    for axes, values, label in zip(grid, rows, labels, strict=False):
        highest = draw_over(axes, view, values, image, top, thumbnails)
        scale = "" if shared or highest is None else f"  (≤ {highest:.2g})"
        axes.set_title(f"{name} {label}{scale}" if array.values.ndim == 2 else scale.strip(), fontsize=9)
    if title:
        figure.suptitle(title)
    return figure


def plot_view(view: View, image: int = 0) -> Figure:
    """Draw a picture of the prompt with a frame around what each visual token shows, thumbnails left out."""
    figure = Figure(figsize=(3.6, 3.6), layout="constrained")
    axes = figure.subplots()
    picture, panels = view.pictures[image], view.of(image)
    width, height = picture.size
    axes.imshow(np.asarray(picture), extent=(0, width, height, 0))
    for panel in panels:
        for box in panel.boxes().values():
            outline(axes, box, picture.size, edgecolor="white", linewidth=0.4)
    _fit(axes, [panel.box for panel in panels], picture.size)
    axes.set_axis_off()
    axes.set_title(f"{sum(panel.cells.size for panel in panels)} visual tokens", fontsize=9)
    return figure


def draw_over(
    axes: Axes, view: View, values: np.ndarray, image: int = 0, top: float | None = None, thumbnails: bool = False
) -> float | None:
    """Draw `values` [V] over a picture, transparent at 0; return the highest drawn, None if all are NaN."""
    panels = view.of(image, thumbnails)
    count = sum(panel.cells.size for panel in view.panels)
    if len(values) < count:
        raise ValueError(f"{len(values)} numbers were given for {count} cells: one is needed for every visual token")
    cells = [values[panel.cells] for panel in panels]
    known = np.concatenate([cell[~np.isnan(cell)] for cell in cells])
    picture = view.pictures[image].convert("L")
    width, height = picture.size
    axes.imshow(np.asarray(picture), "gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    axes.set_axis_off()
    if not len(known):
        return None
    highest = float(known.max())
    for panel, cell in zip(panels, cells, strict=True):
        left, upper, right, lower = panel.box
        strength = np.clip(np.nan_to_num(cell) / (top or highest or 1), 0, 1)
        extent = (left * width, right * width, lower * height, upper * height)
        style = {"alpha": 0.85 * strength**0.5, "extent": extent, "interpolation": "nearest"}
        axes.imshow(cell, COLORS, vmin=0, vmax=top or highest, **style)
    _fit(axes, [panel.box for panel in panels], (width, height))
    return highest


def outline(axes: Axes, box: Box, size: tuple[int, int], **style: Any) -> None:
    """Draw the frame of a cell over a picture of `size` (pixels)."""
    left, top, right, bottom = box
    width, height = size
    corner = (left * width, top * height)
    axes.add_patch(Rectangle(corner, (right - left) * width, (bottom - top) * height, **{"fill": False, **style}))


def plot_by_layer(array: NamedArray, label: str, title: str = "") -> Figure:
    """Draw lines over the layers, one per place of the other axis: axes (layer,) or (layer, …)."""
    if array.axes[0] != "layer" or array.values.ndim > 2:
        raise ValueError(f"expected axes (layer,) or (layer, …), got {array.axes}: take a mean, or .at(…), first")
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    if array.values.ndim == 1:
        axes.plot(array.values, marker="o")
    else:
        name = array.axes[1]
        for place, line in enumerate(array.values.T):
            axes.plot(line, marker="o", markersize=4, label=f"{array.labels.get(name, range(len(line)))[place]}")
        axes.legend(title=name, fontsize=8, ncols=1 + array.size(name) // 9, frameon=False)
    axes.set(xlabel="decoder layer", ylabel=label, title=title)
    tidy(axes, len(array.values))
    return figure


def plot_words(words: Words, tokenizer: Any, title: str = "", **places: int) -> Figure:
    """Draw a table of words coloured by probability; `places` leave two axes, such as `token=0` or `rank=0`.

    Raises `ValueError` where not two axes are left.
    """
    text, chance = words.text(tokenizer).at(**places), words.probabilities.at(**places)
    if text.values.ndim != 2:
        raise ValueError(f"a table has two axes, these words have {', '.join(text.axes)}: give a place for the others")
    rows, columns = text.values.shape
    figure = Figure(figsize=(min(14, 1.6 + 0.95 * columns), 0.9 + 0.27 * rows), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(chance.values, "Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), word in np.ndenumerate(text.values):
        dark = chance.values[row, column] > 0.6
        word = word.replace("$", r"\$")  # no formulas
        axes.text(column, row, word, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    for axis, name in ((axes.yaxis, text.axes[0]), (axes.xaxis, text.axes[1])):
        labels = text.labels.get(name, range(text.size(name)))
        axis.set_ticks(range(len(labels)), list(map(str, labels)), fontsize=8)
        axis.set_label_text({"layer": "decoder layer"}.get(name, name))
    axes.set_title(title)
    figure.colorbar(shown, ax=axes, label="probability", pad=0.01)
    return figure


def tidy(axes: Axes, layers: int) -> None:
    """Layer ticks, a light grid, no frame."""
    axes.set_xticks(range(0, layers, max(1, layers // 16)))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _fit(axes: Axes, boxes: Sequence[Box], size: tuple[int, int]) -> None:
    """Show the whole picture, and whatever was padded to it."""
    width, height = size
    left, top, right, bottom = np.array([*boxes, (0, 0, 1, 1)]).T
    axes.set_xlim(left.min() * width, right.max() * width)
    axes.set_ylim(bottom.max() * height, top.min() * height)
