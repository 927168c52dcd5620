"""Cohere2-Vision and Aya Vision: attention and MLP side by side, sliding windows, full layers without positions."""

from .placeholders import Placeholders


class Cohere2Vision(Placeholders):
    """`command-a-vision-*` and `aya-vision-*` of CohereLabs: tiles and a thumbnail; what frames them is text."""

    model_types = {
        "cohere2_vision": "Cohere2VisionForConditionalGeneration",
        "aya_vision": "AyaVisionForConditionalGeneration",
    }
