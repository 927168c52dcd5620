"""A grid over thresholds: score, agreement with dense and FLOPs of every cell."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from matplotlib.figure import Figure

from .pictures import line_picture, map_picture, measures
from .plan import DENSE, Cell, Experiment, Row, Setup

DEFAULT_GRID = {
    "layer_threshold": (0.990, 0.993, 0.995, 0.997, 0.999),
    "tokens_threshold": (0.1, 0.15, 0.2, 0.25, 0.3),
}


def cells(setup: Setup) -> list[Cell]:
    """Every combination of the grid's values, on top of the config."""
    found = [Cell({"cell": DENSE} | dict.fromkeys(setup.grid), None)]
    for values in itertools.product(*setup.grid.values()):
        point = dict(zip(setup.grid, values, strict=True))
        found.append(Cell({"cell": "pruned"} | point, {**setup.config, **point}))
    return found


def draw(rows: Sequence[Row]) -> Figure:
    """Draw maps over the first two keys (means over further ones), or lines over a single one."""
    keys = list(rows[0])[1 : list(rows[0]).index("score")]
    if len(keys) == 1:
        return line_picture(rows, "cell", keys[0], {"pruned": "pruned"}, keys[0])
    shown = [*measures(rows), ("flops_share", "FLOPs, all tokens (% of dense)")]
    return map_picture(rows, keys[1], keys[0], shown)


EXPERIMENT = Experiment(
    name="grid",
    title="A grid over thresholds",
    source="Thresholds of section 4",
    finding="The published thresholds are 0.995 and 0.2 for LLaVA-1.5-7B.",
    cells=cells,
    draw=draw,
)
