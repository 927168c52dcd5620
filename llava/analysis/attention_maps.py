"""Where chosen tokens look: attention of any token of a prompt to all before it, or to its visual tokens alone.

    maps = attention_map(model, inputs)[0]  # the last prompt token of the batch's first prompt, every layer and head
    plot_over_picture(maps.mean("head").at(row=0), prompt.scene)

Only the chosen rows are formed, one layer after the other. VisiPruner (arXiv 2510.17205) reads such maps with care: in
shallow layers attention to the image is a sink, in the middle ones it does not find the tokens that matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .arrays import NamedArray
from .recording import watch
from .rows import AttentionRows, check_rows


def attention_map(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    positions: Sequence[int] = (-1,),
    *,
    columns: str = "visual",
    visual_mask: torch.Tensor | None = None,
) -> list[NamedArray]:
    """Return the attention of the tokens at `positions`, nothing pruned; one array a prompt.

    positions:
        places in the prompt, images expanded; negative from its end: −1 is the last prompt token
    columns:
        `visual` its visual tokens, `all` every token

    Returns fp32 arrays with axes (layer, row, head, token), tokens labelled with their positions. The softmax runs over
    all tokens that a row sees; a row's later tokens weigh 0.

    Raises:
        ValueError: positions that a prompt does not have, more than `MAX_ROWS` of them, a prompt without an image.

    """
    if columns not in ("visual", "all"):
        raise ValueError(f"columns must be 'visual' or 'all', got {columns!r}")
    arrays = []
    for prompt in watch(model, inputs, AttentionRows(check_rows(positions)), visual_mask=visual_mask):
        layers = [prompt.measured[layer] for layer in sorted(prompt.measured)]
        chosen = prompt.visual if columns == "visual" else layers[0].columns
        weights = np.stack([layer.weights[..., chosen] for layer in layers])
        labels = {"row": list(positions), "token": chosen.tolist()}
        arrays.append(NamedArray(weights, ("layer", "row", "head", "token"), labels))
    return arrays


def visual_share(attention: NamedArray) -> NamedArray:
    """Return how much of each row's attention goes to the tokens of the map: their sum."""
    return attention.sum("token")
