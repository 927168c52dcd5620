"""Bare decoders, alone or inside a model that no family knows; and which decoder stacks the engine runs at all."""

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
DECODERS = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model", "Qwen2VLTextModel", "Qwen2_5_VLTextModel")
DECODERS += ("Qwen3VLTextModel", "Qwen3VLMoeTextModel", "Qwen3_5TextModel", "Qwen3_5MoeTextModel", "Lfm2Model")
"""Stacks that do nothing but what their `LayerKind`s and `Family.added` say."""


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


def plain(decoder: nn.Module) -> bool:
    """Whether a decoder is one of those with one row of positions and nothing but attention and MLPs."""
    return isinstance(decoder, STACKS)


def check_attention(model: nn.Module, decoder: nn.Module) -> None:
    """Refuse a decoder whose attention the engine would compute differently from the model itself.

    Raises:
        ValueError: an unknown stack (it may add sinks, soft caps or biases), or layers with a sliding window.

    """
    name = type(model).__name__
    if not {kind.__name__ for kind in type(decoder).__mro__}.intersection(DECODERS):
        known = ", ".join(DECODERS)
        raise ValueError(f"pruning does not know the decoder {type(decoder).__name__} of {name}; it knows {known}")
    config = decoder.config
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"]
    other = sorted(set(types) - {"full_attention", "linear_attention", "conv"})
    if other:
        raise ValueError(
            f"{name} has layers of {', '.join(other)} (sliding_window {window}), which pruning does not serve; load it "
            "with use_sliding_window=False or sliding_window=None if its prompts are shorter than the window"
        )
