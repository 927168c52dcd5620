"""Idefics2: 64 tokens per image from a perceiver, or per tile where images are split (arXiv 2405.02246)."""

from .placeholders import Placeholders


class Idefics2(Placeholders):
    """`HuggingFaceM4/idefics2-8b`, a Mistral decoder; `<fake_token_around_image>` is text."""

    model_types = {"idefics2": "Idefics2ForConditionalGeneration"}
