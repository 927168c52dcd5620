"""Which decoder stacks the engine runs: plain causal attention in every layer, nothing added to it."""

from __future__ import annotations

from torch import nn
from transformers import LlamaModel, MistralModel, Qwen2_5_VLTextModel, Qwen2Model, Qwen2VLTextModel, Qwen3Model

DECODERS = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model, Qwen2VLTextModel, Qwen2_5_VLTextModel)


def check_attention(model: nn.Module, decoder: nn.Module) -> None:
    """Refuse a decoder whose attention the engine would compute differently from the model itself.

    Raises:
        ValueError: an unknown stack (it may add sinks, soft caps or biases), or layers with a sliding window.

    """
    name = type(model).__name__
    if not isinstance(decoder, DECODERS):
        known = ", ".join(kind.__name__ for kind in DECODERS)
        raise ValueError(f"pruning does not know the decoder {type(decoder).__name__} of {name}; it knows {known}")
    config = decoder.config
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"]
    other = sorted(set(types) - {"full_attention"})
    if other:
        raise ValueError(
            f"{name} has layers of {', '.join(other)} (sliding_window {window}), which pruning does not serve; load it "
            "with use_sliding_window=False or sliding_window=None if its prompts are shorter than the window"
        )
