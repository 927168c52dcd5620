"""MiniCPM-V 4.6 and 4.7: slices of an image, 16 patches to a token, before the decoder of Qwen3.5."""

from .qwen2_vl import Qwen2VL


class MiniCPMV(Qwen2VL):
    """The decoder's three rows of positions are alike: tokens of images count as text does."""

    model_types = {"minicpmv4_6": "MiniCPMV4_6ForConditionalGeneration"}
    model_types |= {"minicpmv4_7": "MiniCPMV4_7ForConditionalGeneration"}
    model_types |= {"minicpm_ocr": "MiniCPMOcrForConditionalGeneration"}
    token_grid = None
