"""`Softmax`: how a layer makes weights of its attention scores; attention under a mask, with soft caps and sinks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True, eq=False)
class Softmax:
    """What a layer hands to its attention function.

    scale:
        of query · key
    cap:
        soft cap: a score s becomes cap · tanh(s / cap); None without (Gemma 2)
    sinks:
        [H], a score per head that takes part in the softmax and has no value; None without (GPT-OSS)
    """

    scale: float = 1.0
    cap: float | None = None
    sinks: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether the scale is all: what every attention kernel computes."""
        return self.cap is None and self.sinks is None

    def weights(
        self, products: torch.Tensor, unseen: torch.Tensor | None = None, heads: tuple[int, ...] = ()
    ) -> torch.Tensor:
        """Return the attention weights of products query · key, [..., keys].

        unseen: bool, True where a row does not read a key; None where it reads all.
        heads: the view of [H] that broadcasts to the products.
        """
        scores = products * self.scale
        if self.cap is not None:
            scores = self.cap * torch.tanh(scores / self.cap)
        if unseen is not None:
            scores = scores.masked_fill(unseen, float("-inf"))
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = self.sinks.to(scores).view(*heads).expand(*scores.shape[:-1], 1)
        return torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]


SCALED = Softmax()


def attend_masked(query, key, value, seen: torch.Tensor | None, softmax: Softmax) -> torch.Tensor:
    """Attention of rows that each read some keys: query [B, H, q, d], key and value [B, Hkv, k, d] → [B, q, H, d].

    seen: bool [B or 1, 1, q, k], True where a row reads a key, or what is added to the scores; None where it reads all.
    Soft caps form the weights, in fp32; everything else is torch's SDPA, a sink as one more key without a value.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if softmax.cap is not None:
        products = (query @ key.transpose(-1, -2)).float()
        weights = softmax.weights(products, None if seen is None else ~seen, (1, -1, 1, 1))
        return (weights.to(value.dtype) @ value).transpose(1, 2)
    mask = seen
    if softmax.sinks is not None:
        mask = query.new_zeros(1, 1, query.shape[2], key.shape[2])
        if seen is not None:
            mask = mask + seen if seen.is_floating_point() else mask.masked_fill(~seen, float("-inf"))
        sinks = softmax.sinks.to(query).view(1, -1, 1, 1).expand(len(mask), -1, query.shape[2], 1)
        mask = torch.cat((mask.expand(-1, query.shape[1], -1, -1), sinks), -1)
        key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
    return F.scaled_dot_product_attention(query, key, value, mask, scale=softmax.scale).transpose(1, 2)
