"""What an experiment is: cells, each one run of a benchmark under one config, and a picture of their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from llava.model.pruning.method import scaled_boundary

Row = dict[str, Any]
"""A line of an experiment's CSV."""

DENSE = "dense"
THIRDS = {"shallow": (0, 8), "middle": (8, 15), "deep": (26, 32)}
"""The paper's windows of LLaVA-1.5-7B's 32 layers, from 0, the end left out (Tables 1 to 3: 1 to 8, 9 to 15, 27 on)."""


@dataclass(frozen=True)
class Cell:
    """One run: what is varied (columns of the CSV), and the pruning config, None for the untouched model."""

    varied: Mapping[str, Any]
    config: Mapping[str, Any] | None


@dataclass(frozen=True)
class Setup:
    """What the cells of a model are made of; layers count from 0.

    layers:
        of the decoder
    visual_tokens:
        the fewest of a prompt that has any
    windows:
        name → the layers of a stage: `shallow`, `middle`, `deep`
    layer:
        the one after which tokens are selected or disturbed
    keep:
        how many visual tokens a selection keeps, or a disturbance takes
    step:
        a sweep over layers visits every `step`-th
    config:
        a `visipruner` config, for the experiments that vary or watch it
    grid:
        key of that config → values
    """

    layers: int
    visual_tokens: int
    windows: Mapping[str, tuple[int, ...]]
    layer: int
    keep: int
    step: int
    config: Mapping[str, Any]
    grid: Mapping[str, tuple[float, ...]]

    def sweep(self, start: int, stop: int) -> list[int]:
        """Return every `step`-th layer from `start`, and always the last before `stop`."""
        found = list(range(start, stop, self.step))
        return found if not found or found[-1] == stop - 1 else [*found, stop - 1]


@dataclass(frozen=True)
class Experiment:
    """One experiment of the paper.

    `source` is where the paper has it, `finding` what it found on LLaVA-1.5-7B; `cells` makes the runs, the first of
    them dense; `draw` makes the picture of their rows; `table` makes the CSV's lines of (cell's row, totals of its
    run) where that is not one line a cell.
    """

    name: str
    title: str
    source: str
    finding: str
    cells: Callable[[Setup], list[Cell]]
    draw: Callable[[Sequence[Row]], Figure]
    table: Callable[[Sequence[Row], Sequence[Mapping[str, Any]]], list[Row]] | None = None


def default_windows(layers: int) -> dict[str, tuple[int, ...]]:
    """Scale the paper's windows to a decoder of `layers` layers; each has at least one layer."""

    def at(layer: int) -> int:
        return 0 if layer == 0 else min(layers, scaled_boundary(layer, layers))

    found = {}
    for name, (start, stop) in THIRDS.items():
        first = min(at(start), layers - 1)
        found[name] = tuple(range(first, max(first + 1, at(stop))))
    return found


def masked(layers: Sequence[int], **more: Any) -> dict[str, Any]:
    """Return the config that masks text→visual attention in `layers`; `more` are other keys of the method."""
    return {"method": "mask", "layers": list(layers), **more}


def layers_text(layers: Sequence[int]) -> str:
    """Write layers as a person does: `0-3`, `5`, `2 4`; `none` for none."""
    if not layers:
        return "none"
    whole = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if whole and len(layers) > 1 else " ".join(map(str, layers))
