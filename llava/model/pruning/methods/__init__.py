"""The pruning methods by the name that a config's `"method"` key gives them: one file each, one row here."""

from types import MappingProxyType

from .random import RandomPruning
from .visipruner import VisiPruner

METHODS = MappingProxyType({cls.method: cls for cls in (VisiPruner, RandomPruning)})

__all__ = ["METHODS", "RandomPruning", "VisiPruner"]
