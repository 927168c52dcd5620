"""Selection rules at one layer: attention of the last token, of text, of visual tokens, and influence."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from llava.model.pruning.methods.ranking import RANKS

from .pictures import bar_picture
from .plan import DENSE, Cell, Experiment, Row, Setup


def cells(setup: Setup) -> list[Cell]:
    """Keep as many tokens by each rule, at random, and none."""
    found = [Cell({"rule": DENSE, "layer": setup.layer, "keep": setup.visual_tokens}, None)]
    for rank in RANKS:
        config = {"method": "attention_topk", "layer": setup.layer, "keep": setup.keep, "rank": rank}
        found.append(Cell({"rule": rank, "layer": setup.layer, "keep": setup.keep}, config))
    for rule, keep in (("random", setup.keep), ("none kept", 0)):
        config = {"method": "random", "layer": setup.layer, "keep": keep}
        found.append(Cell({"rule": rule, "layer": setup.layer, "keep": keep}, config))
    return found


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a bar for each rule."""
    return bar_picture([row | {"": ""} for row in rows], "rule", "")


EXPERIMENT = Experiment(
    name="selection",
    title="Selection rules at one layer",
    source="Table 4",
    finding="Layer 16, 10 tokens, POPE / GQA / TextVQA / MM-Vet: last-token attention 85.9 / 60.3 / 57.1 / 25.4, text "
    "85.9 / 58.0 / 55.6 / 23.8, visual 85.9 / 55.2 / 52.0 / 20.9, influence 86.1 / 61.3 / 57.8 / 31.9.",
    cells=cells,
    draw=draw,
)
