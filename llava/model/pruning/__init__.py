"""The pruning engine: packed tokens, one attention function, one patched decoder forward, a ragged cache, traces."""

from .cache import RaggedCache
from .config import PruningConfig
from .prefix_cache import PrefixStore
from .session import PruningSession, prune
from .trace import PruningTrace

__all__ = ["PrefixStore", "PruningConfig", "PruningSession", "PruningTrace", "RaggedCache", "prune"]
