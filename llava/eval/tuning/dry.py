"""What a config costs, without the model: the engine itself counts tokens, on a decoder of the same depth, 8 wide.

How many tokens a method with a fixed schedule keeps depends on the prompt's length alone, neither on its words nor on
the weights; FLOPs then follow with the real decoder's dimensions. For methods that decide by what they measure
(VisiPruner) it tells nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava.eval.timing.shapes import text_split
from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.flops import DecoderShape

from . import Count

WIDTH = 8
MOST = 8
"""Prompts that stand for all: evenly spread over those in the order of their length."""


class DryRun:
    """Counts FLOPs of configs on prompts of given sizes, for a decoder of dimensions `shape`.

    sizes: (tokens, visual tokens) of every prompt; the visual ones stand together, as `text_split` places them
    count: the tokens whose FLOPs count
    """

    def __init__(self, shape: DecoderShape, sizes: Sequence[tuple[int, int]], count: Count = "all"):
        ordered = sorted(sizes)
        rows = min(MOST, len(ordered))
        self.shape, self.count = shape, count
        self.sizes = [ordered[(2 * place + 1) * len(ordered) // (2 * rows)] for place in range(rows)]
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
        """Visual tokens of the prompt in the middle."""
        return self.sizes[len(self.sizes) // 2][1]

    def share(self, config: PruningConfig) -> float:
        """Return prefill FLOPs as a share of dense; raises what `prune` raises."""
        with torch.inference_mode(), prune(self._model, config, self._visual) as session:
            self._model(inputs_embeds=self._embeds, attention_mask=self._attended, logits_to_keep=1)
        traces = [dataclasses.replace(trace, shape=self.shape) for trace in session.traces]
        dense = sum(trace.dense_flops(self.count) for trace in traces)
        return sum(trace.flops(self.count) for trace in traces) / dense
