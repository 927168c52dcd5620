"""A bare decoder, alone or inside a model that no family knows: the caller says which of its tokens are visual."""

from __future__ import annotations

from torch import nn
from transformers import (
    LlamaForCausalLM,
    LlamaModel,
    MistralForCausalLM,
    MistralModel,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from .base import Family

STACKS = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)
HEADED = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)


class BareDecoder(Family):
    """Causal language models and their decoder stacks, with `prune(…, visual_mask=mask)`.

    A stack pruned by itself serves the model around it: `prune(model.language_model, …)`, then `model.generate(…)`.
    """

    models = f"{', '.join(kind.__name__ for kind in HEADED + STACKS)} with visual_mask"
    needs_mask = True

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        """Whether `model` is a decoder of a shape that the engine runs, with or without its language-model head."""
        return isinstance(model, HEADED + STACKS)

    def decoder(self, model: nn.Module) -> nn.Module:
        """Return the stack: the model itself, or what is under its head."""
        return model if isinstance(model, STACKS) else model.model


def stack_in(model: nn.Module) -> str | None:
    """Return the name of the first module of `model` that could be pruned by itself, None where there is none."""
    return next((name for name, module in model.named_modules() if name and isinstance(module, STACKS)), None)
