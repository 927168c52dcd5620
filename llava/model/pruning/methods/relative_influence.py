"""Influence whose L2 is relative to the attention output: ‖c_j‖ / ‖O‖, a number that a model's scale does not change.

With every value vector of a layer multiplied by s, ‖c_j‖ grows s-fold; cos_j and ‖c_j‖ / ‖O‖ stay (see `influence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..influence import Influence, Measurement
from ..probes import LayerStates


@dataclass(frozen=True)
class RelativeInfluence(Influence):
    """As `Influence`, its `l2` divided by ‖O‖; the last token's attention is formed a second time for that."""

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        """Measure the prompts together, and ‖O‖ of each: fp32 [b]."""
        return (*super().measure(states, prompts), torch.stack([_output_norm(states, b) for b in prompts]))

    def results(self, states: LayerStates, prompts: tuple[int, ...], arrays: Sequence[np.ndarray]) -> list[Measurement]:
        """Divide each prompt's L2 by its own ‖O‖."""
        found = super().results(states, prompts, arrays)
        return [one._replace(l2=one.l2 / norm) for one, norm in zip(found, arrays[1], strict=True)]


def _output_norm(states: LayerStates, prompt: int) -> torch.Tensor:
    """Return ‖O‖ of a prompt's last token, its heads concatenated: fp32 []."""
    start, end = states.tokens.spans[prompt]
    key, value = (part[0, :, start:end].float() for part in (states.key, states.value))  # [Hkv, L, d]
    query = states.query[0, :, end - 1].float().unflatten(0, (len(key), -1))  # [Hkv, g, d]
    weights = (query @ key.transpose(-1, -2) * states.scaling).softmax(-1)
    return (weights @ value).norm().clamp_min(1e-8)
