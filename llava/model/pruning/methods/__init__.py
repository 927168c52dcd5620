"""The pruning methods by the name that a config's `"method"` key gives them: one file each, one row here."""

from types import MappingProxyType

from .attention_topk import AttentionTopK
from .disturb import Disturb
from .divprune import DivPrune
from .fastv import FastV
from .fitprune import FitPrune
from .mask import Mask
from .none import NoPruning
from .pyramiddrop import PyramidDrop
from .random import RandomPruning
from .replay import Replay
from .sparsevlm import SparseVLM
from .visionzip import VisionZip
from .visipruner import VisiPruner
from .vtw import VTW

_CLASSES = (
    *(VisiPruner, FastV, PyramidDrop, SparseVLM, VTW, FitPrune, AttentionTopK),
    *(VisionZip, DivPrune),
    *(RandomPruning, NoPruning, Replay),
    *(Mask, Disturb),
)
METHODS = MappingProxyType({cls.method: cls for cls in _CLASSES})
BEFORE = ("visionzip", "divprune", "random")
"""Those that can prune before the decoder."""

__all__ = ["BEFORE", "METHODS", *(cls.__name__ for cls in _CLASSES)]
