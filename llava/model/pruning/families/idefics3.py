"""Idefics3 and SmolVLM: tiles of 169, 81 or 64 tokens and the whole image (arXiv 2408.12637, 2504.05299)."""

from .placeholders import Placeholders


class Idefics3(Placeholders):
    """`HuggingFaceM4/Idefics3-8B-Llama3`, `HuggingFaceTB/SmolVLM-*`, `SmolVLM2-*`: a Llama decoder.

    Text stands before every tile (`<row_1_col_2>`, `<global-img>`) and before every frame of a video (its time), whose
    placeholders are an image's.
    """

    model_types = {"idefics3": "Idefics3ForConditionalGeneration", "smolvlm": "SmolVLMForConditionalGeneration"}
