"""The vocabulary a method speaks to the engine: attention rules, cache rules, selections, and a prompt's policy.

A method says *what* (which tokens a row may read, what to measure, which tokens stay); the engine knows *how*.
Everything a policy sees and decides lives on the host as numpy arrays over one prompt's visual tokens, so that a
method is plain Python and the engine synchronises at most once per probed layer. What it measures is a `Probe`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

    from .probes import Probe


@dataclass(frozen=True)
class AttentionRule:
    """How text rows and visual rows read the visual columns of one layer.

    text:
        `dense` all of them · `merge` their attention mass moves onto one visual token (`sink`) · `half` the first
        half of them weighs 0 after the softmax · `zero` all weigh 0 after the softmax · `remove` left out before
        the softmax
    visual:
        `dense` · `zero` visual columns, the row's own included, weigh 0 after the softmax · `remove` the row reads
        only the text before it (itself where there is none)
    sink:
        index into the prompt's visual tokens, for `merge`; a row that comes before that token merges into the last
        visual token it sees
    """

    text: Literal["dense", "merge", "half", "zero", "remove"] = "dense"
    visual: Literal["dense", "zero", "remove"] = "dense"
    sink: int = 0

    @property
    def dense(self) -> bool:
        """True where the layer attends like the untouched model."""
        return self.text == "dense" and self.visual == "dense"


@dataclass(frozen=True)
class KVRule:
    """Which keys and values of one layer are kept for decoding: text always, and of the visual ones `visual`."""

    visual: Literal["all", "none", "sink"] = "all"
    sink: int = 0


@dataclass(frozen=True)
class Selection:
    """Which of a prompt's visual tokens enter the next layer, and what they carry.

    keep:
        bool [V]
    rewrite:
        the hidden states [V, D] of all visual tokens → those of the kept ones [keep.sum(), D], in their order; None
        leaves them as they are. How tokens are merged: a kept place carries what `rewrite` makes of several.
    """

    keep: np.ndarray
    rewrite: Callable[[torch.Tensor], torch.Tensor] | None = None


class Policy:
    """Decides for one prompt, layer by layer. The base class measures nothing and keeps everything.

    Layer −1 is the moment before layer 0, when the visual tokens are what the projector made of the image.
    """

    filter_layer: int | None = None
    """The layer after which only chosen visual tokens remain; a policy sets it when it chooses for the first time."""

    def probe(self, layer: int) -> Probe | None:
        """Return what to measure of this prompt after `layer`, None for nothing; asked before the layer runs."""
        return None

    def hidden(self, layer: int, positions: np.ndarray) -> np.ndarray | None:
        """Return which visual tokens text rows of `layer`, and decoding there, do not read: bool [V], None for none.

        Asked before the layer runs, where the config's rule for its text rows is `dense`; visual rows read them.
        """
        return None

    def keep(self, layer: int, positions: np.ndarray, measured: Any) -> np.ndarray | Selection | None:
        """Return which visual tokens enter the next layer: bool [V], a `Selection`, or None for all of them.

        positions:
            int [V], places in the prompt of the visual tokens that `layer` ran with
        measured:
            what the probe of `layer` measured (a named tuple of fp32 arrays), None where there was none
        """
        return None


def strongest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return bool [V]: the `count` highest scores, the earlier token first where two are equal."""
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(-scores, kind="stable")[:count]] = True
    return chosen
