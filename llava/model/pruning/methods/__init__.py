"""The pruning methods, one file each; importing this package enters them in `METHODS`."""

from ..method import METHODS
from .attention_topk import AttentionTopK
from .controls import Disturb, Mask, NoPruning, RandomPruning
from .divprune import DivPrune
from .fastv import FastV
from .fitprune import FitPrune
from .pyramiddrop import PyramidDrop
from .replay import Replay
from .schedule import Schedule
from .sparsevlm import SparseVLM
from .visionzip import VisionZip
from .visipruner import VisiPruner
from .vtw import VTW

__all__ = [
    "METHODS", "VisiPruner", "FastV", "PyramidDrop", "SparseVLM", "VTW", "FitPrune", "AttentionTopK", "VisionZip",
    "DivPrune", "Schedule", "RandomPruning", "NoPruning", "Replay", "Mask", "Disturb",
]  # fmt: skip
