"""LightOnOCR: a Pixtral encoder before a Qwen3 decoder, one token per 28×28 pixels of a page."""

from .placeholders import Placeholders


class LightOnOcr(Placeholders):
    """`lightonai/LightOnOCR-1B-*`; the tokens that break rows and end an image are left out of its prompts."""

    model_types = {"lighton_ocr": "LightOnOcrForConditionalGeneration"}
