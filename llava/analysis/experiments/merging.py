"""The merge target: into which visual token the attention of the first layers is merged."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from llava.model.pruning.method import scaled_boundary

from .pictures import bar_picture
from .plan import DENSE, Cell, Experiment, Row, Setup, layers_text, masked

SHARES = (0, 127 / 575, 287 / 575, 1)
"""Where the paper's targets 1, 128, 288 and 576 lie among 576 visual tokens."""


def cells(setup: Setup) -> list[Cell]:
    """Merge in the first layers (2 of 32) into tokens at four places, or mask them without merging."""
    layers = list(range(scaled_boundary(2, setup.layers)))
    targets = list(dict.fromkeys(round(share * (setup.visual_tokens - 1)) for share in SHARES))
    found = [Cell({"target": DENSE, "masked": layers_text([])}, None)]
    found.append(Cell({"target": "not merged", "masked": layers_text(layers)}, masked(layers)))
    for token in targets:
        config = masked(layers, merge_layers=layers, sink_token=token)
        found.append(Cell({"target": f"token {token}", "masked": layers_text(layers)}, config))
    return found


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a bar for each target."""
    return bar_picture([row | {"": ""} for row in rows], "target", "")


EXPERIMENT = Experiment(
    name="merging",
    title="The token that attention is merged into",
    source="Table 9",
    finding="GQA, layers 1–2, into visual token 1, 128, 288, 576: 61.98, 61.83, 61.76, 61.55; not merged 57.41.",
    cells=cells,
    draw=draw,
)
