"""Discarding the image from a layer on, against skipping it in that layer alone."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from .pictures import line_picture
from .plan import DENSE, Cell, Experiment, Row, Setup, masked

LABELS = {"discard": "no visual token from layer k on", "skip": "text does not read the image in layer k"}


def cells(setup: Setup) -> list[Cell]:
    """Discard from, and skip in, every layer of the sweep; discarded from layer 0 on, the model sees no image."""
    found = [Cell({"how": DENSE, "k": 0}, None)]
    for k in setup.sweep(0, setup.layers):
        found.append(Cell({"how": "discard", "k": k}, {"method": "vtw", "k": k}))
    for k in setup.sweep(0, setup.layers):
        found.append(Cell({"how": "skip", "k": k}, masked([k])))
    return found


def draw(rows: Sequence[Row]) -> Figure:
    """Draw both as lines."""
    return line_picture(rows, "how", "k", LABELS, "k (decoder layer, from 0)")


EXPERIMENT = Experiment(
    name="discarding",
    title="Discarding the image from a layer on, and skipping one layer",
    source="Section 5.1",
    finding="GQA: all visual tokens dropped from layer 20 on 59.13, from 26 on 61.91; only layer 20 skipped 61.66, "
    "only 26 skipped 61.40; dense 62.0.",
    cells=cells,
    draw=draw,
)
