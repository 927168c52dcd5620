"""FLOPs and KV bytes of a dense prompt for the paper's models, by the field's convention.

python -m llava.eval.flops                                              # a Markdown table
python -m llava.eval.flops --model Qwen2-VL-7B --visual-tokens 1024
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llava.cli import UserError, number, option, run_command

HEADINGS = ("model", "layers", "width", "MLP", "heads / KV", "visual tokens", "FLOPs", "printed", "KV, 16 bit")


def rows(names: Sequence[str] = (), visual_tokens: int | None = None) -> list[tuple[str, ...]]:
    """Return a row of `HEADINGS` for each model (default: all): its paper's prompt, or `visual_tokens` visual tokens.

    Raises:
        UserError: an unknown model.

    """
    from llava.model.pruning.fields import nearest
    from llava.model.pruning.shapes import MODELS

    found = []
    for name in names or MODELS:
        if name not in MODELS:
            raise UserError(f"unknown model {name!r}{nearest(name, MODELS)}; known: {', '.join(MODELS)}")
        model = MODELS[name]
        shape, count = model.shape, model.visual_tokens if visual_tokens is None else visual_tokens
        sizes = (name, shape.layers, shape.hidden, shape.mlp, f"{shape.heads} / {shape.kv_heads}", count)
        flops = f"{shape.layers * shape.layer_flops(count) / 1e12:.3f}T"
        printed = f"{model.printed:.2f}T" if count == model.visual_tokens else ""
        found.append((*map(str, sizes), flops, printed, f"{shape.layers * shape.kv_bytes(count, 2) / 1e6:.1f} MB"))
    return found


@dataclass(kw_only=True)
class Options:
    """Which model, and how many visual tokens."""

    model: str | None = option(None, help="one of the models (default: all)")
    visual_tokens: int | None = option(
        None, help="visual tokens (default: the paper's prompt)", type=number(int, 0), metavar="N"
    )


def work(options: Options) -> None:
    """Print the table."""
    from llava.eval.results.table import Table

    table = Table(HEADINGS)
    for row in rows([options.model] if options.model else [], options.visual_tokens):
        table.add(*row)
    print(table.markdown())


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return run_command(Options, work, argv, prog="python -m llava.eval.flops", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
