"""The vocabulary a method speaks to the engine: attention rules, cache rules, measurements, and a prompt's policy.

A method says *what* (which tokens a row may read, what to measure, which tokens stay); the engine knows *how*.
Everything a policy sees and returns lives on the host as numpy arrays over one prompt's visual tokens, so that a
method is plain Python and the engine synchronises at most once per probed layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


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
class Measurement:
    """What was measured of one prompt's visual tokens at one layer; fp32 arrays of shape [V], V visual tokens now.

    cosine:
        cos(O, O − c_j), O the attention output of the last prompt token (heads concatenated, before `o_proj`) and
        c_j the part that visual token j contributes to it
    l2:
        ‖c_j‖₂
    attention:
        attention of the last prompt token to token j, averaged over heads
    """

    cosine: np.ndarray
    l2: np.ndarray
    attention: np.ndarray


class Policy:
    """Decides for one prompt, layer by layer. The base class measures nothing and keeps everything."""

    filter_layer: int | None = None
    """The layer after which only chosen visual tokens remain; a policy sets it when it chooses."""

    def measures(self, layer: int) -> bool:
        """Whether this prompt's visual tokens are to be measured at `layer`."""
        return False

    def keep(self, layer: int, visual_tokens: int, measured: Measurement | None) -> np.ndarray | None:
        """Return which visual tokens enter the next layer: bool [visual_tokens], or None for all of them."""
        return None
