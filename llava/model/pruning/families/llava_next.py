"""LLaVA-NeXT (v1.6): the thumbnail, the AnyRes tiles and the image newlines between their rows are all visual."""

from .placeholders import Placeholders


class LlavaNext(Placeholders):
    """`llava-hf/llava-v1.6-*-hf`; its processor writes placeholders for newlines as for patches."""

    model_types = {"llava_next": "LlavaNextForConditionalGeneration"}
    token_grid = "anyres"
