"""Llama's layers over packed rows: many conversations about one image, the prompt's prefix and the image computed once.

A sequence is prefix, image, conversation. The rows of a batch of B images, V visual tokens each, with K conversations
of S tokens are

    [n0 prefix rows | B·V visual rows | B·K·S text rows]

A conversation reads the prefix, its image and itself. A `Plan` says where it does not, to imitate pruning in training
on whole batches.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from llava.tiny.export import Architecture


@dataclass(frozen=True)
class Plan:
    """Which rows read the image in which layers, to imitate pruning in training; default: the plain model.

    blind:
        layers whose text rows read no visual token
    merged:
        whether layer 0's text rows put all their visual attention on the first visual token instead
    isolated:
        layers whose visual rows read only the text before them
    filter_layer, kept:
        after this layer text rows read only the `kept` visual tokens that had most influence on the last token of
        their turn's prompt there (length of what it contributed, heads concatenated, before `o_proj`)
    glance:
        whether text rows read nothing at the filter layer itself, which then only chooses
    """

    blind: frozenset[int] = frozenset()
    merged: bool = False
    isolated: frozenset[int] = frozenset()
    filter_layer: int | None = None
    kept: int = 0
    glance: bool = False


DENSE = Plan()


@dataclass(frozen=True)
class Rows:
    """Data of one batch that all layers share.

    prefix, images, visual, conversations, width:
        n0, B, V, K, S of the packed rows
    cos, sin:
        rotary tables of all rows, [R, 1, D]
    ends:
        [B, K, T] index of the last prompt token of every turn
    turns:
        [B, K, S] the turn that a token belongs to
    """

    prefix: int
    images: int
    visual: int
    conversations: int
    width: int
    cos: torch.Tensor
    sin: torch.Tensor
    ends: torch.Tensor
    turns: torch.Tensor


def _causal(size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.full((size, size), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class RMSNorm(nn.Module):
    """Llama's normalisation."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Take and return [..., size]."""
        return F.rms_norm(x, x.shape[-1:], self.weight, 1e-5)


class DecoderLayer(nn.Module):
    """A layer of Llama over packed rows."""

    def __init__(self, a: Architecture):
        super().__init__()
        d = a.hidden_size
        self.heads, self.size = a.heads, d // a.heads
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(d), RMSNorm(d)
        self.qkv, self.o_proj = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.gate_up, self.down_proj = nn.Linear(d, 2 * a.mlp_size, bias=False), nn.Linear(a.mlp_size, d, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        rows: Rows,
        number: int,
        plan: Plan,
        kept: torch.Tensor | None,
        text_only: bool,
        watched: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run one layer.

        Args:
            x: [R, D] packed rows.
            rows: what they are.
            number: this layer's, from 0.
            plan: what is read where.
            kept: bool [B, K, S, V], the visual tokens that text may read here; None: all.
            text_only: whether only the text rows are wanted, as nothing reads the others any more.
            watched: gets the text rows' attention to the image, [H, B, K, S, V], where they read it.

        Returns:
            The rows after the layer ([R, D], or the text rows alone), and `kept` for the next layer.

        """
        qkv = self.qkv(self.input_layernorm(x)).view(len(x), 3, self.heads, self.size)
        q, k, v = qkv.unbind(1)
        cos, sin = rows.cos.to(q.dtype), rows.sin.to(q.dtype)
        # [H, R, D] each
        q = (_rotate(q, cos, sin) * self.size**-0.5).transpose(0, 1)
        k, v = _rotate(k, cos, sin).transpose(0, 1), v.transpose(0, 1)
        text, kept = self._text_rows(q, k, v, rows, number, plan, kept, watched)
        if text_only:
            read, x = text, x[-len(text) :]
        else:
            read = torch.cat([*self._image_rows(q, k, v, rows, number in plan.isolated), text])
        x = x + self.o_proj(read)
        gate, up = self.gate_up(self.post_attention_layernorm(x)).chunk(2, -1)
        return x + self.down_proj(F.silu(gate) * up), kept

    def _text_rows(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        rows: Rows,
        number: int,
        plan: Plan,
        kept: torch.Tensor | None,
        watched: list[torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of the conversations' rows, [B·K·S, D], and the visual tokens kept after this layer."""
        n0, visual, heads = rows.prefix, rows.images * rows.visual, self.heads
        shape = (heads, rows.images, rows.conversations, rows.width)
        parts = [(n0, visual, q.shape[1] - n0 - visual)] * 3
        (_, _, qt), (kp, kv, kt), (vp, vv, vt) = (t.split(p, 1) for t, p in zip((q, k, v), parts, strict=True))
        qt, kt, vt = qt.contiguous(), kt.reshape(*shape, -1), vt.reshape(*shape, -1)
        by_image = (heads, rows.images, rows.visual, self.size)
        kv, vv = kv.reshape(by_image), vv.reshape(by_image)
        scores = [(qt @ kp.mT).view(*shape, n0)]
        sees = rows.visual > 0 and number not in plan.blind
        if sees:
            seen = (qt.view(heads, rows.images, -1, self.size) @ kv.mT).view(*shape, rows.visual)
            scores.append(seen if kept is None else seen.masked_fill(~kept, float("-inf")))
        scores.append(qt.view(*shape, -1) @ kt.mT + _causal(rows.width, qt))
        weights = torch.cat(scores, -1).softmax(-1).to(v.dtype)
        split = weights.split([s.shape[-1] for s in scores], -1)
        read = (split[0].reshape(heads, -1, n0) @ vp).view(*shape, -1) + split[-1] @ vt
        if sees:
            on_image = split[1]
            if watched is not None:
                watched.append(on_image)
            if plan.glance and number == plan.filter_layer:
                read = read / (split[0].sum(-1) + split[-1].sum(-1)).view(*shape, 1)
            elif plan.merged and number == 0:
                read = read + on_image.sum(-1, keepdim=True) * vv[:, :, None, None, 0]
            else:
                read = read + (on_image.reshape(heads, rows.images, -1, rows.visual) @ vv).view(*shape, -1)
            if number == plan.filter_layer and plan.kept < rows.visual:
                kept = _most_influential(on_image.detach(), vv.detach(), rows, plan.kept)
        return read.permute(1, 2, 3, 0, 4).reshape(-1, heads * self.size), kept

    def _image_rows(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: Rows, isolated: bool
    ) -> tuple[torch.Tensor, ...]:
        """Attention of the prefix rows [n0, D] and, where there are any, of the visual rows [B·V, D]."""
        n0, visual, heads = rows.prefix, rows.images * rows.visual, self.heads
        qp, kp, vp = (t[:, :n0] for t in (q, k, v))
        prefix = (qp @ kp.mT + _causal(n0, qp)).softmax(-1).to(v.dtype) @ vp
        prefix = prefix.transpose(0, 1).reshape(n0, -1)
        if not visual:
            return (prefix,)
        qv, kv, vv = (t[:, n0 : n0 + visual] for t in (q, k, v))
        by_image = (heads, rows.images, rows.visual)
        before = qv @ kp.mT
        if isolated:
            read = before.softmax(-1).to(v.dtype) @ vp
        else:
            among = qv.reshape(*by_image, -1) @ kv.reshape(*by_image, -1).mT + _causal(rows.visual, qv)
            weights = torch.cat([before.view(*by_image, n0), among], -1).softmax(-1).to(v.dtype)
            read = weights[..., :n0].reshape(heads, visual, n0) @ vp
            read = read + (weights[..., n0:] @ vv.reshape(*by_image, -1)).view(heads, visual, -1)
        return prefix, read.transpose(0, 1).reshape(visual, -1)


def _most_influential(weights: torch.Tensor, values: torch.Tensor, rows: Rows, count: int) -> torch.Tensor:
    """Return bool [B, K, S, V]: for each row the tokens that contributed most to its turn's last prompt token.

    weights [H, B, K, S, V], values [H, B, V, D]; ‖c_j‖² = Σ_h A² ‖v‖².
    """
    heads, _, _, _, visual = weights.shape
    ends = rows.ends[None, ..., None].expand(heads, *rows.ends.shape, visual)
    at_ends = weights.gather(3, ends).float()
    influence = (at_ends.square() * values.float().square().sum(-1)[:, :, None, None]).sum(0)
    top = influence.topk(count, -1).indices if count else influence.new_empty((*influence.shape[:-1], 0)).long()
    kept = torch.zeros_like(influence, dtype=torch.bool).scatter_(-1, top, True)
    return kept.gather(2, rows.turns[..., None].expand(*rows.turns.shape, visual))
