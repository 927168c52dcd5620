"""What new tokens read of a prompt's cache: visual keys held aside between choices, and text keys dropped by length.

The region of an image that matters moves while a long answer is written (arXiv 2604.12358), so that visual keys are
not dropped but held aside: every so many new tokens each layer chooses again, by what those tokens attended to, among
all of them. Text keys are scored as kvpress' KnormPress does (short keys matter), by the mean over heads, and dropped
for good. Keys held aside stay in memory: new tokens read fewer of them, the cache is as large.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch

from .fields import AtLeast, Share, checked, nearest, types_of
from .packed import upload


@dataclass(frozen=True)
class Decoding:
    """Settings of the add-on.

    visual:
        share of a layer's cached visual keys that new tokens read; 1: all, and nothing is measured
    every:
        new tokens after which each layer chooses again; the first choice is by the prompt's last token
    text:
        share of the prompt's text keys that each layer keeps
    """

    visual: Share = 1.0
    every: Annotated[int, AtLeast(1)] = 16
    text: Share = 1.0

    def __post_init__(self):
        for name, kind in types_of(type(self)).items():
            object.__setattr__(self, name, checked(f"decoding.{name}", getattr(self, name), kind))

    @classmethod
    def of(cls, given: Any) -> Decoding:
        """Read the settings from a config's object; raises `ValueError`."""
        if isinstance(given, cls):
            return given
        if not isinstance(given, dict):
            raise ValueError(f"'decoding' is an object with {', '.join(types_of(cls))}, got {given!r}")
        for key in given:
            if key not in types_of(cls):
                raise ValueError(f"unknown key {key!r} in 'decoding'{nearest(key, types_of(cls))}")
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings."""
        return asdict(self)

    def text_kept(self, key: torch.Tensor, visual: np.ndarray, bounds: list[tuple[int, int]]) -> tuple:
        """Return which of a layer's keys [1, Hkv, T, d] stay: places int [n] on the device, and how many per prompt.

        visual: bool [T]; bounds: (start, end) of each prompt
        """
        length = key[0].float().norm(dim=-1).mean(0)
        parts, counts = [], []
        for start, end in bounds:
            seen = visual[start:end]
            text = upload(start + np.flatnonzero(~seen), key.device)
            shortest = length[text].argsort(stable=True)[: round(self.text * len(text))]
            parts.append(torch.cat((text[shortest], upload(start + np.flatnonzero(seen), key.device))).sort().values)
            counts.append(len(parts[-1]))
        return torch.cat(parts), tuple(counts)


class HeldAside:
    """The visual keys of a cache that new tokens do not read at present, by layer."""

    def __init__(self, rule: Decoding):
        self.rule, self.since = rule, 0
        self.visual: dict[int, torch.Tensor] = {}
        self.counts: dict[int, torch.Tensor] = {}
        self.scores: dict[int, torch.Tensor] = {}
        self.hidden: dict[int, torch.Tensor] = {}

    def hold(self, layer: int, visual: torch.Tensor) -> None:
        """Take in a layer: bool [B, L], its visual keys."""
        self.visual[layer] = visual
        self.counts[layer] = (self.rule.visual * visual.sum(1)).round().long()
        self.scores[layer] = torch.zeros(visual.shape, device=visual.device)

    @torch.no_grad()
    def observe(self, layer: int, query: torch.Tensor, key: torch.Tensor, scaling: float, valid: Any = None) -> None:
        """Add the attention, mean over heads, of rows [B, H, q, d] to keys [B, Hkv, L + new, d], held ones included.

        valid: bool [B, L], False at padding; None without
        """
        groups, rows, keys = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
        scores = query.float() @ key.float().repeat_interleave(groups, 1).transpose(-1, -2) * scaling
        later = torch.ones(rows, keys, dtype=torch.bool, device=key.device).triu(keys - rows + 1)
        scores = scores.masked_fill(later, float("-inf"))
        width = self.visual[layer].shape[1]
        if valid is not None:
            scores[..., :width] = scores[..., :width].masked_fill(~valid.to(key.device)[:, None, None], float("-inf"))
        self.scores[layer] += scores.softmax(-1).mean(1).sum(1)[:, :width]

    def choose(self, layer: int) -> None:
        """Let new tokens of a layer read the visual keys with the highest scores; the earlier first where equal."""
        scores = self.scores[layer].masked_fill(~self.visual[layer], -1)
        rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        self.hidden[layer] = self.visual[layer] & (rank >= self.counts[layer][:, None])
        self.scores[layer] = torch.zeros_like(self.scores[layer])

    def advance(self, new: int) -> None:
        """Count new tokens, and choose again after `every` of them."""
        self.since += new
        if self.since >= self.rule.every:
            self.since = 0
            for layer in self.visual:
                self.choose(layer)

    def pick(self, rows: torch.Tensor) -> None:
        """Keep the prompts at `rows`, in that order."""
        for name in ("visual", "counts", "scores", "hidden"):
            parts = getattr(self, name)
            setattr(self, name, {layer: part.index_select(0, rows.to(part.device)) for layer, part in parts.items()})
