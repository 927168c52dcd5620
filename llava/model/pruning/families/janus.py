"""Janus-Pro: 576 tokens per image that it reads; images that it writes are tokens of a codebook (arXiv 2501.17811)."""

from .placeholders import Placeholders


class Janus(Placeholders):
    """`deepseek-community/Janus-Pro-*`, a Llama decoder; `<begin_of_image>` and `<end_of_image>` are text."""

    model_types = {"janus": "JanusForConditionalGeneration"}
