"""The parts of `llava.eval.face_to_face`: pruning methods set to one FLOPs budget, asked the same, and compared."""

from typing import Literal

Count = Literal["all", "visual"]
"""Which tokens FLOPs are counted over: all of the prompt, or the visual ones alone, as papers of this field do."""


class FaceError(ValueError):
    """What was asked for cannot be compared; one line."""
