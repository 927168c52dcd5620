"""GOT-OCR2 and PP-Chart2Table: 256 tokens per image or tile from a SAM encoder (arXiv 2409.01704)."""

from .placeholders import Placeholders


class GotOcr2(Placeholders):
    """`stepfun-ai/GOT-OCR-2.0-hf`, `PaddlePaddle/PP-Chart2Table_safetensors`: a Qwen2 decoder."""

    model_types = {"got_ocr2": "GotOcr2ForConditionalGeneration", "pp_chart2table": "GotOcr2ForConditionalGeneration"}
