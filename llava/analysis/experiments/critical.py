"""Critical tokens: the influential ones replaced by noise, or removed, beside the others and random ones."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from .pictures import bar_picture
from .plan import DENSE, Cell, Experiment, Row, Setup

GROUPS = {
    "most influential": {"rank": "influence", "end": "top"},
    "least influential": {"rank": "influence", "end": "bottom"},
    "random": {"rank": "random"},
}


def cells(setup: Setup) -> list[Cell]:
    """Disturb as many tokens of each group, by noise in their place and by removing them."""
    found = [Cell({"tokens": DENSE, "how": "none", "layer": setup.layer, "count": 0}, None)]
    for group, which in GROUPS.items():
        for how in ("noise", "remove"):
            config = {"method": "disturb", "layer": setup.layer, "count": setup.keep, "how": how, **which}
            found.append(Cell({"tokens": group, "how": how, "layer": setup.layer, "count": setup.keep}, config))
    return found


def draw(rows: Sequence[Row]) -> Figure:
    """Draw a group of bars for each kind of tokens."""
    return bar_picture(rows, "tokens", "how")


EXPERIMENT = Experiment(
    name="critical",
    title="Critical tokens replaced by noise, and removed",
    source="Section 4",
    finding="Fusion runs through few critical tokens, which influence finds and attention weight does not.",
    cells=cells,
    draw=draw,
)
