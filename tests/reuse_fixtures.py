"""Prompts for a bare decoder about images with a number, what their traces decided, and the rows that layers ran."""

from __future__ import annotations

import torch


def decisions(trace):
    return (
        *(trace.tokens_per_layer, trace.visual_per_layer, trace.kv_tokens_per_layer, trace.rules, trace.given),
        *(trace.filter_layer, trace.kept, trace.exit_layer, trace.cuts, [probe.layer for probe in trace.probes]),
    )


def embedded(image: int, *lengths: int, before: int = 3, tokens: int = 12) -> tuple[dict, torch.Tensor]:
    """Prompts for a bare decoder: text, image number `image`, a question of each length; inputs and visual mask."""
    generator = torch.Generator().manual_seed(100 + image)
    text, picture = (
        torch.randn(before, 48, generator=torch.Generator().manual_seed(1)),
        torch.randn(tokens, 48, generator=generator),
    )
    own = [torch.randn(length, 48, generator=generator) for length in lengths]
    embeds = torch.stack([torch.cat((text, picture, question)) for question in own])
    visual = torch.zeros(embeds.shape[:2], dtype=torch.bool)
    visual[:, before : before + tokens] = True
    return {"inputs_embeds": embeds}, visual


class Rows:
    """Counts the rows that each layer's MLP runs."""

    def __init__(self, model):
        self.counts: list[int] = []
        for layer in model.model.layers:
            layer.mlp.down_proj.register_forward_hook(lambda module, args, output: self.counts.append(len(args[0][0])))

    def take(self) -> list[int]:
        counts, self.counts = self.counts, []
        return counts
