"""Searches that propose configs: thresholds without labels (calibration), and methods at one FLOPs budget."""

from typing import Literal

Count = Literal["all", "visual"]
"""Which tokens FLOPs are counted over: all of the prompt, or the visual ones alone, as papers of this field do."""


class FaceError(ValueError):
    """What was asked for cannot be compared; one line."""
