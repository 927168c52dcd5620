"""A bare Llama-shaped decoder: the caller says which of its tokens are visual."""

from __future__ import annotations

from torch import nn
from transformers import LlamaForCausalLM, Qwen2ForCausalLM

from .base import Family


class BareDecoder(Family):
    """`LlamaForCausalLM`, `Qwen2ForCausalLM` and their subclasses, with `prune(…, visual_mask=mask)`."""

    models = "LlamaForCausalLM and Qwen2ForCausalLM with visual_mask"
    needs_mask = True

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        """Whether `model` is a causal language model of a shape that the engine runs."""
        return isinstance(model, LlamaForCausalLM | Qwen2ForCausalLM)

    def decoder(self, model: nn.Module) -> nn.Module:
        """Return the stack under the language-model head."""
        return model.model
