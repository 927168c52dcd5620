"""Decoders of the paper's models, and what a dense prompt costs them in the field's count: the printed FLOPs.

For Qwen2-VL and InternVL2.5 the paper prints totals and no token counts; those here are the ones at which the totals
arise, grouped key and value projections counted as they are. `python -m llava.eval.flops` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .flops import DecoderShape


@dataclass(frozen=True)
class Published:
    """A decoder, the visual tokens of the paper's prompt, and the FLOPs that the paper prints for it (10¹²)."""

    shape: DecoderShape
    visual_tokens: int
    printed: float


MODELS: Mapping[str, Published] = MappingProxyType(
    {
        "LLaVA-1.5-7B": Published(DecoderShape(32, 4096, 11008, 32, 32, 128), 576, 3.82),
        "LLaVA-1.5-13B": Published(DecoderShape(40, 5120, 13824, 40, 40, 128), 576, 7.44),
        "MobileVLM-V2-3B": Published(DecoderShape(32, 2560, 6912, 32, 32, 80), 144, 0.37),
        "Qwen2-VL-7B": Published(DecoderShape(28, 3584, 18944, 28, 4, 128), 1413, 9.62),
        "InternVL2.5-8B": Published(DecoderShape(32, 4096, 14336, 32, 8, 128), 1492, 11.00),
    }
)
