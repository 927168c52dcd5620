"""Mistral Small 3.1 and its kin: images of any size, one token per 28×28 pixels in rows (Pixtral, arXiv 2410.07073)."""

from .placeholders import Placeholders


class Mistral3(Placeholders):
    """`mistralai/Mistral-Small-3.*`, Ministral 3; `[IMG_BREAK]` after a row and `[IMG_END]` are text."""

    model_types = {"mistral3": "Mistral3ForConditionalGeneration"}
