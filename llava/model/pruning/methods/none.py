"""No pruning: the control that goes through the pruned engine and drops nothing, so that only the engine differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config import PruningConfig
from ..policy import Policy


@dataclass(frozen=True)
class NoPruning(PruningConfig):
    """Keep every visual token in every layer; with `before`, what that stage alone does."""

    method: ClassVar[str] = "none"

    def start(self, num_layers: int) -> Policy:
        """Return a policy that measures nothing and keeps everything."""
        return Policy()
