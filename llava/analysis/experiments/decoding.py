"""The image in the cache while decoding: visual keys of a stage's layers removed after a dense prefill."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from .pictures import bar_picture
from .plan import DENSE, Cell, Experiment, Row, Setup, layers_text, masked


def cells(setup: Setup) -> list[Cell]:
    """Remove the visual keys of each stage, and of all layers; the prompt is read dense every time."""
    stages = {**setup.windows, "all": tuple(range(setup.layers))}
    found = [Cell({"layers": DENSE, "removed": layers_text([])}, None)]
    return found + [
        Cell({"layers": name, "removed": layers_text(window)}, masked(window, text="dense", kv="none"))
        for name, window in stages.items()
    ]


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a bar for each stage."""
    return bar_picture([row | {"": ""} for row in rows], "layers", "")


EXPERIMENT = Experiment(
    name="decoding",
    title="Visual keys and values removed while decoding",
    source="Tables 2, 10",
    finding="MM-Vet: layers 1–8 33.8, 9–15 28.3, 26–32 31.1, all 26.1, none 31.2: the middle layers' cache is read. "
    "Answers of one token cannot change: it is chosen by the prefill.",
    cells=cells,
    draw=draw,
)
