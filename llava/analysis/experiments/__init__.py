"""The experiments of the paper's analysis (arXiv 2510.17205), one file each; `EXPERIMENTS` has all of them by name."""

from types import MappingProxyType

from . import attended, critical, decoding, discarding, exits, grid, merging, selection, self_attention, windows
from .plan import Cell, Experiment, Setup

EXPERIMENTS = MappingProxyType(
    {
        module.EXPERIMENT.name: module.EXPERIMENT
        for module in (
            windows,
            attended,
            self_attention,
            merging,
            decoding,
            discarding,
            selection,
            critical,
            exits,
            grid,
        )
    }
)

__all__ = ["EXPERIMENTS", "Cell", "Experiment", "Setup"]
