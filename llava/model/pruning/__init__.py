"""The pruning engine: packed tokens, one attention function, one patched decoder forward, a ragged cache, traces.

A method of one's own needs the names of this module alone (docs/methods.md).
"""

from . import methods
from .cache import RaggedCache
from .fields import AtLeast, Count, Layer, Share
from .influence import Influence
from .method import EXIT, AttentionRule, KVRule, Method, PromptState, Selection, strongest
from .prefix_cache import PrefixCache
from .probes import AttentionProbe, LayerStates, Probe
from .session import PruningSession, prune
from .trace import PruningTrace

PruningConfig = Method
"""A pruning config is an instance of its method's class; `PruningConfig.of` makes one of JSON, a dict or a path."""

__all__ = [
    "PrefixCache", "PruningConfig", "PruningSession", "PruningTrace", "RaggedCache", "methods", "prune", "AtLeast",
    "AttentionProbe", "AttentionRule", "Count", "EXIT", "Influence", "KVRule", "Layer", "LayerStates", "Method",
    "Probe", "PromptState", "Selection", "Share", "strongest",
]  # fmt: skip
