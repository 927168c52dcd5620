"""LLaVA-OneVision: AnyRes tiles with image newlines as in LLaVA-NeXT, several images, and video frames."""

from .placeholders import Placeholders


class LlavaOnevision(Placeholders):
    """`llava-hf/llava-onevision-*-hf`, a Qwen2 decoder; image and video placeholders are visual, newlines too."""

    model_types = {"llava_onevision": "LlavaOnevisionForConditionalGeneration"}
    token_grid = "anyres"
