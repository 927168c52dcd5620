"""Decoders of the paper's models, and what a dense prompt costs them in the field's count: the printed FLOPs.

For Qwen2-VL and InternVL2.5 the paper prints totals and no token counts; those here are the ones at which the totals
arise, grouped key and value projections counted as they are.

    python -m llava.model.pruning.shapes                                    # a Markdown table
    python -m llava.model.pruning.shapes --model Qwen2-VL-7B --visual-tokens 1024
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
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

HEADER = ("model", "layers", "width", "MLP", "heads / KV", "visual tokens", "FLOPs", "printed", "KV, 16 bit")


def table(names: Sequence[str], visual_tokens: int | None = None) -> list[tuple[str, ...]]:
    """Return a row of `HEADER` for each model: its paper's prompt, or `visual_tokens` visual tokens."""
    rows = []
    for name in names:
        model = MODELS[name]
        shape, count = model.shape, model.visual_tokens if visual_tokens is None else visual_tokens
        rows.append(
            (
                name,
                str(shape.layers),
                str(shape.hidden),
                str(shape.mlp),
                f"{shape.heads} / {shape.kv_heads}",
                str(count),
                f"{shape.layers * shape.layer_flops(count) / 1e12:.3f}T",
                f"{model.printed:.2f}T" if count == model.visual_tokens else "",
                f"{shape.layers * shape.kv_bytes(count, 2) / 1e6:.1f} MB",
            )
        )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m llava.model.pruning.shapes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=MODELS, help="one of the models (default: all)")
    parser.add_argument("--visual-tokens", type=int, metavar="N", help="visual tokens (default: the paper's prompt)")
    args = parser.parse_args(argv)
    if args.visual_tokens is not None and args.visual_tokens < 0:
        print(f"error: --visual-tokens must be at least 0, got {args.visual_tokens}", file=sys.stderr)
        return 2
    rows = table([args.model] if args.model else list(MODELS), args.visual_tokens)
    for row in (HEADER, ("---",) * len(HEADER), *rows):
        print("|", " | ".join(row), "|")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
