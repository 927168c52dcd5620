"""Influence of visual tokens on the last prompt token (VisiPruner, arXiv 2510.17205, section 4): cosine and L2.

With A the last token's attention, v the values and O its attention output (heads concatenated, before `o_proj`),
visual token j contributes c_j = concat_h(A[h, j] · v[h, j]); cos_j = cos(O, O − c_j), l2_j = ‖c_j‖. No c_j is formed:
‖c_j‖² = Σ_h A[h, j]² ‖v[h, j]‖² and O·c_j = Σ_h A[h, j] (O_h · v[h, j]).
"""

from __future__ import annotations

import numpy as np
import torch

from .packed import PackedTokens, left_padded_places
from .policy import Measurement


def measure(query, key, value, tokens: PackedTokens, prompts: list[int], scaling: float) -> dict[int, Measurement]:
    """Measure the visual tokens of the given prompts at one layer, in fp32, with one host synchronisation.

    query [1, H, T, d], key and value [1, Hkv, T, d], after rotary embedding. Returns a `Measurement` by prompt.
    """
    lengths = tuple(tokens.lengths[b] for b in prompts)
    width, heads, kv_heads = max(lengths), query.shape[1], key.shape[1]
    last = torch.tensor([tokens.spans[b][1] - 1 for b in prompts], device=query.device)
    q = query[0].index_select(1, last).transpose(0, 1).float()  # [b, H, d]
    q = q.unflatten(1, (kv_heads, heads // kv_heads))  # [b, Hkv, g, d]
    k, padding = _rows(key, tokens, prompts, lengths, width)  # [b, Hkv, L, d]
    v, _ = _rows(value, tokens, prompts, lengths, width)
    scores = q @ k.transpose(-1, -2) * scaling  # [b, Hkv, g, L]
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], float("-inf"))
    weights = scores.softmax(-1)
    output = weights @ v  # [b, Hkv, g, d]
    contribution2 = (weights.square().sum(2) * v.square().sum(-1)).sum(1)  # [b, L]
    along = (weights * (output @ v.transpose(-1, -2))).sum((1, 2))
    output2 = output.square().sum((1, 2, 3))[:, None]  # [b, 1]
    rest2 = (output2 - 2 * along + contribution2).clamp_min(0)
    cosine = (output2 - along) / (output2 * rest2).sqrt().clamp_min(1e-8)
    everything = torch.stack((cosine, contribution2.sqrt(), weights.mean((1, 2)))).cpu().numpy()
    found = {}
    for row, b in enumerate(prompts):
        start, end = tokens.spans[b]
        columns = width - (end - start) + np.flatnonzero(tokens.visual[start:end])
        found[b] = Measurement(*(part[row, columns] for part in everything))
    return found


def _rows(states, tokens: PackedTokens, prompts: list[int], lengths: tuple[int, ...], width: int):
    if len(prompts) == 1:
        start, end = tokens.spans[prompts[0]]
        return states[:, :, start:end].float(), None
    stream = states[0].transpose(0, 1)  # [T, Hkv, d]
    if len(prompts) < len(tokens.lengths):
        stream = torch.cat([stream[slice(*tokens.spans[b])] for b in prompts])
    if all(n == width for n in lengths):
        return stream.unflatten(0, (len(prompts), width)).transpose(1, 2).float(), None
    places = left_padded_places(lengths, width, stream.device)
    padded = stream.new_zeros(len(prompts) * width, *stream.shape[1:]).index_copy(0, places, stream)
    padding = torch.ones(len(prompts) * width, dtype=torch.bool, device=stream.device).index_fill(0, places, False)
    return padded.unflatten(0, (len(prompts), width)).transpose(1, 2).float(), padding.view(len(prompts), width)
