"""Bare decoders, alone or inside a model that no family knows; and which decoder stacks the engine runs at all."""

from __future__ import annotations

from torch import nn

from .base import Family

PLAIN = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
STACKS = (*PLAIN, "Ministral3Model", "Qwen3MoeModel", "SmolLM3Model", "GemmaModel", "Gemma2Model", "Gemma3TextModel")
STACKS += ("CohereModel", "Cohere2Model", "GptOssModel")
"""Stacks that are pruned by themselves, too: their positions are one number per token."""

DECODERS = (*STACKS, "Qwen2VLTextModel", "Qwen2_5_VLTextModel", "Qwen3VLTextModel", "Qwen3VLMoeTextModel")
DECODERS += ("Glm4vTextModel", "Glm4vMoeTextModel", "Qwen3_5TextModel", "Qwen3_5MoeTextModel", "Lfm2Model")
"""Stacks that the engine runs: they do nothing but what their `LayerKind`s and `Family.added` say."""


def _is(module: nn.Module | None, names: tuple[str, ...]) -> bool:
    return not {kind.__name__ for kind in type(module).__mro__}.isdisjoint(names)


class BareDecoder(Family):
    """Causal language models and their decoder stacks, with `prune(…, visual_mask=mask)`.

    A stack pruned by itself serves the model around it: `prune(model.language_model, …)`, then `model.generate(…)`.
    """

    models = f"{', '.join(STACKS)}, alone or under a language-model head, with visual_mask"
    needs_mask = True

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        """Whether `model` is a decoder of a shape that the engine runs, with or without its language-model head."""
        return _is(model, STACKS) or (hasattr(model, "lm_head") and _is(getattr(model, "model", None), STACKS))

    def decoder(self, model: nn.Module) -> nn.Module:
        """Return the stack: the model itself, or what is under its head."""
        return model if _is(model, STACKS) else model.model


def stack_in(model: nn.Module) -> str | None:
    """Return the name of the first module of `model` that could be pruned by itself, None where there is none."""
    return next((name for name, module in model.named_modules() if name and _is(module, STACKS)), None)


def plain(decoder: nn.Module) -> bool:
    """Whether a decoder is one of those with one row of positions and nothing but attention and MLPs."""
    return _is(decoder, PLAIN)


def check_attention(model: nn.Module, decoder: nn.Module) -> None:
    """Refuse a decoder whose attention the engine would compute differently from the model itself.

    Raises:
        ValueError: an unknown stack, which may do more between its layers, or in them, than their kinds say.

    """
    name = type(model).__name__
    if not _is(decoder, DECODERS):
        known = ", ".join(DECODERS)
        raise ValueError(f"pruning does not know the decoder {type(decoder).__name__} of {name}; it knows {known}")
