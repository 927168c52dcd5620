"""LLaVA-NeXT-Video: images as LLaVA-NeXT's, frames pooled 2×2 (144 tokens of 24×24 patches), no newlines in videos."""

from .placeholders import Placeholders


class LlavaNextVideo(Placeholders):
    """`llava-hf/LLaVA-NeXT-Video-*-hf`, a Llama or Mistral decoder; image and video placeholders are visual."""

    model_types = {"llava_next_video": "LlavaNextVideoForConditionalGeneration"}
    token_grid = "anyres"
