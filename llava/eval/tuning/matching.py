"""Meet a FLOPs budget: bisection over the number of visual tokens; costs are counted without a model.

The number of tokens that a fixed schedule keeps depends on the prompt's length alone. So the engine counts tokens on a
decoder of the same depth with hidden size 8, and FLOPs follow from the real dimensions. This does not hold for methods
that decide by measurement (VisiPruner).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava.cli import UserError
from llava.eval.timing.shapes import text_split
from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.flops import DecoderShape

STEPS = 14
"""Bisections of [0, 1]: no prompt of today's models has 2¹⁴ visual tokens."""
WIDTH = 8
PROMPTS = 8
"""Prompts that stand for all: evenly spread over those in the order of their length."""


Measure = Literal["all", "visual", "kv", "tokens"]
"""What is brought to a budget: prefill FLOPs of all or of visual tokens, the cache, or visual tokens per layer."""


class Shares(NamedTuple):
    """Costs of a config as shares of dense, by `Measure`."""

    all: float
    visual: float
    kv: float
    tokens: float


class Absent(UserError):
    """A method has no config at a budget; the message says why."""


@dataclass(frozen=True)
class Matched:
    """A config within the budget, and its cost as a share of dense."""

    config: PruningConfig
    share: float


def settle(
    at: Callable[[float], PruningConfig], budget: float, share: Callable[[PruningConfig], float], steps: int = STEPS
) -> Matched | None:
    """Return the most expensive config within the budget; None where even the cheapest exceeds it.

    at: the config that keeps more tokens the higher its argument in [0, 1] is
    budget: share of dense prefill FLOPs; share: that of a config; steps: bisections
    """
    low, high = 0.0, 1.0
    best = Matched(at(low), share(at(low)))
    if best.share > budget:
        return None
    whole = Matched(at(high), share(at(high)))
    if whole.share <= budget:
        return whole
    for _ in range(steps):
        middle = (low + high) / 2
        config = at(middle)
        cost = share(config)
        if cost <= budget:
            low, best = middle, Matched(config, cost)
        else:
            high = middle
    return best


class DryRun:
    """Counts costs of configs for prompts of given sizes and a decoder of dimensions `shape`.

    sizes: (tokens, visual tokens) of every prompt; the visual ones stand together, as `text_split` places them
    measure: what `share` and `settle` go by
    """

    def __init__(self, shape: DecoderShape, sizes: Sequence[tuple[int, int]], measure: Measure = "all"):
        ordered = sorted(sizes)
        rows = min(PROMPTS, len(ordered))
        self.shape, self.measure = shape, measure
        self.sizes = [ordered[(2 * place + 1) * len(ordered) // (2 * rows)] for place in range(rows)]
        self.costs = cache(self._costs)
        longest = max(tokens for tokens, _ in self.sizes)
        settings = {"vocab_size": 2, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_attention_heads": 1}
        settings |= {"bos_token_id": None, "eos_token_id": None}
        config = LlamaConfig(**settings, num_hidden_layers=shape.layers, max_position_embeddings=longest)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._model = LlamaForCausalLM(config).eval().requires_grad_(False)
            self._embeds = torch.randn(rows, longest, WIDTH)
        self._attended = torch.zeros(rows, longest, dtype=torch.long)
        self._visual = torch.zeros(rows, longest, dtype=torch.bool)
        for row, (tokens, visual) in enumerate(self.sizes):
            start = longest - tokens
            self._attended[row, start:] = 1
            before, _ = text_split(tokens - visual)
            self._visual[row, start + before : start + before + visual] = True

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of the median prompt."""
        return self.sizes[len(self.sizes) // 2][1]

    def share(self, config: PruningConfig) -> float:
        """Return what is measured as a share of dense; raises what `prune` raises."""
        return getattr(self.costs(config), self.measure)

    def _costs(self, config: PruningConfig) -> Shares:
        counted = config.countable(self.visual_tokens)
        with torch.inference_mode(), prune(self._model, counted, self._visual) as session:
            self._model(inputs_embeds=self._embeds, attention_mask=self._attended, logits_to_keep=1)
        traces = [dataclasses.replace(trace, shape=self.shape) for trace in session.traces]
        flops = [sum(trace.flops(count) for trace in traces) for count in ("all", "visual")]
        dense = [sum(trace.dense_flops(count) for trace in traces) for count in ("all", "visual")]
        kv = sum(trace.kv_bytes for trace in traces) / sum(trace.dense_kv_bytes for trace in traces)
        whole = self.shape.layers * sum(trace.visual_tokens for trace in traces)
        tokens = sum(sum(trace.visual_per_layer) for trace in traces) / whole
        return Shares(flops[0] / dense[0], flops[1] / dense[1], kv, tokens)

    def settle(self, schedules: Sequence[PruningConfig], budget: float, most: int) -> list[Matched]:
        """Set at most `most` of a method's schedules, evenly spaced among those that can meet it, to the budget.

        Raises `Absent` where none reaches it.
        """
        if not schedules:
            raise Absent("the decoder has too few layers for it")

        def at(schedule: PruningConfig) -> Callable[[float], PruningConfig]:
            return lambda x: schedule.with_budget(x, self.shape.layers, self.visual_tokens)

        floors = [self.share(at(schedule)(0.0)) for schedule in schedules]
        within = [schedule for schedule, floor in zip(schedules, floors, strict=True) if floor <= budget]
        if not within:
            raise Absent(f"its most aggressive setting still costs {100 * min(floors):.1f}% of dense")
        count = min(most, len(within))
        places = [round(place * (len(within) - 1) / max(count - 1, 1)) for place in range(count)]
        return [settle(at(within[place]), budget, self.share) for place in places]
