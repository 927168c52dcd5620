"""Qianfan-OCR: InternVL's layout on a Qwen3 decoder, tiles of 256 tokens and a thumbnail."""

from .placeholders import Placeholders


class QianfanOCR(Placeholders):
    """`baidu/Qianfan-OCR`; `<img>` and `</img>` around the tiles are text."""

    model_types = {"qianfan_ocr": "QianfanOCRForConditionalGeneration"}
    token_grid = "tiles"
