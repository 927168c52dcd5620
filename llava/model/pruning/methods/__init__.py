"""The pruning methods, one file each; importing this package enters them in `METHODS`."""

from ..method import METHODS
from .attention_topk import AttentionTopK
from .cdpruner import CDPruner
from .controls import Disturb, Mask, NoPruning, RandomPruning
from .dart import DART
from .divprune import DivPrune
from .downsample import Downsample
from .dycoke import DyCoke
from .evs import EVS
from .fastv import FastV
from .fitprune import FitPrune
from .frame_sampling import FrameSampling
from .hiprune import HiPrune
from .holov import HoloV
from .prumerge import PruMerge
from .pyramiddrop import PyramidDrop
from .replay import Replay
from .schedule import Schedule
from .scope import SCOPE
from .sparsevlm import SparseVLM
from .vidcom2 import VidCom2
from .visionzip import VisionZip
from .visipruner import VisiPruner
from .vispruner import VisPruner
from .vtw import VTW

__all__ = [
    "METHODS", "VisiPruner", "FastV", "PyramidDrop", "SparseVLM", "VTW", "FitPrune", "AttentionTopK", "VisionZip",
    "DivPrune", "CDPruner", "DART", "VisPruner", "HoloV", "SCOPE", "PruMerge", "HiPrune", "EVS", "VidCom2", "DyCoke",
    "FrameSampling", "Downsample", "Schedule", "RandomPruning", "NoPruning", "Replay", "Mask", "Disturb",
]  # fmt: skip
