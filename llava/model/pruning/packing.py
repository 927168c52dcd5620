"""A padded batch as one packed stream, and the stream as a padded batch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch

from .packed import PackedTokens, Rotary, upload

IGNORE = -100
"""The label of tokens that no loss counts, as in LLaVA and transformers."""


def pack(
    embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    visual_mask: torch.Tensor,
    rotary: Rotary,
    grid: np.ndarray | None = None,
    added: Mapping[int, torch.Tensor] = MappingProxyType({}),
    blocks: torch.Tensor | None = None,
    targets: torch.Tensor | None = None,
) -> tuple[PackedTokens, torch.Tensor]:
    """Pack a padded batch (padding on either side). One host synchronisation.

    embeds [B, T, D]; attention_mask [B, T] or None; position_ids [B, T], [1, T], [3, B, T] (M-RoPE) or None for
    counting from 0; visual_mask bool [B, T]; rotary maps (x, position_ids) to (cos, sin); grid int [B, T, 4], added
    [B, T, D] by layer and blocks int [B, T] as `PackedTokens` has them; targets int64 [B, T], the label of each next
    token (−100: none), or None.
    Returns the tokens and each prompt's next position, int64 [B].

    Raises:
        ValueError: shapes that do not agree, a mask that is not 2-D, or a prompt without tokens.

    """
    batch, width = embeds.shape[:2]
    if visual_mask.shape != (batch, width):
        raise ValueError(f"visual_mask has shape {tuple(visual_mask.shape)}, expected {(batch, width)} as the prompts")
    if attention_mask is not None and attention_mask.shape != (batch, width):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; pruning takes a 2-D mask, here {(batch, width)}"
        )
    if targets is not None and targets.shape != (batch, width):
        raise ValueError(f"labels have shape {list(targets.shape)}, expected {[batch, width]}: one per token as given")
    device = embeds.device
    if attention_mask is None:
        attention_mask = torch.ones_like(visual_mask)
    planes = [attention_mask.to(device).bool(), visual_mask.to(device).bool()]
    planes += [] if targets is None else [targets.to(device)]
    valid, visual, *targets = torch.stack(planes).cpu().numpy()
    valid, visual = valid.astype(bool), visual.astype(bool)
    lengths = valid.sum(1)
    if not lengths.all():
        raise ValueError(f"prompt {int(np.flatnonzero(lengths == 0)[0])} of the batch has no tokens")
    position = (np.cumsum(valid, 1) - 1)[valid]
    visual = visual[valid]
    visual[np.cumsum(lengths) - 1] = False
    if position_ids is None:
        position_ids = upload(position, device)[None]
        following = upload(lengths, device)
    else:
        position_ids = position_ids.to(device).expand(*position_ids.shape[:-2], batch, width)
        live = position_ids.masked_fill(upload(~valid, device), -1)
        following = live.movedim(-2, 0).flatten(1).amax(1) + 1
    if not valid.all():
        flat = upload(np.flatnonzero(valid), device)
        embeds = embeds.flatten(0, 1).index_select(0, flat)
        added = {layer: part.flatten(0, 1).index_select(0, flat) for layer, part in added.items()}
        if position_ids.shape[-2:] == (batch, width):
            position_ids = position_ids.flatten(-2).index_select(-1, flat).unsqueeze(-2)
    elif position_ids.shape[-2:] == (batch, width):
        position_ids = position_ids.flatten(-2).unsqueeze(-2)
    hidden = embeds.reshape(1, -1, embeds.shape[-1])
    labels = [targets[0][valid], _answers(targets[0][valid], position)] if targets else []
    return PackedTokens(
        hidden,
        tuple(rotary(hidden, position_ids)),
        tuple(map(int, lengths)),
        visual,
        position,
        *labels,
        added={layer: part.reshape(hidden.shape) for layer, part in added.items()},
        blocks=None if blocks is None else blocks.cpu().numpy()[valid],
        grid=None if grid is None else grid[valid],
    ), following


def _answers(targets: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return where answers begin, bool [T]: at tokens with a label after one without; a prompt's first has none."""
    labelled = np.concatenate([[False], targets[:-1] != IGNORE]) & (position > 0)
    return labelled & ~np.concatenate([[False], labelled[:-1]])


def unpack(hidden: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """Return the stream [1, T, D] as a batch [B, max length, D], zeros on the left of the shorter prompts."""
    width = max(lengths)
    if all(n == width for n in lengths):
        return hidden.view(len(lengths), width, -1)
    batch = hidden.new_zeros(len(lengths) * width, hidden.shape[-1])
    places = upload(left_padded_places(lengths, width), hidden.device)
    return batch.index_copy(0, places, hidden[0]).view(len(lengths), width, -1)


def left_padded_places(lengths: tuple[int, ...], width: int) -> np.ndarray:
    """Return where each packed token lands in the flattened left-padded batch [B · width]: int64 [T]."""
    return np.concatenate([np.arange((b + 1) * width - n, (b + 1) * width) for b, n in enumerate(lengths)])
