"""LLaVA-1.5 in transformers' layout: the same prompt and pixels as in its original layout, for the same answers.

Its chat template leaves the system sentence that the model was trained with to the caller, and its image processor cuts
off the sides of an image where LLaVA pads it to a square with the mean colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from llava.conversation import conv_templates
from llava.mm_utils import expand2square
from llava.model.images import to_rgb

from .base import ProcessedImage, Turn
from .convention import DEFAULT_CONV_MODE
from .processor import ProcessorInputs


class LlavaHFInputs(ProcessorInputs):
    """`llava-hf/llava-1.5-*-hf`: the chat template with LLaVA's system sentence, images padded to squares."""

    def messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """Return the conversation with the system sentence before it."""
        sentence = {"type": "text", "text": conv_templates[DEFAULT_CONV_MODE].system}
        return [{"role": "system", "content": [sentence]}, *super().messages(turns)]

    def prepare(self, image: Image.Image) -> ProcessedImage:
        """Pad an image to a square, then run the processor."""
        mean_color = tuple(int(channel * 255) for channel in self.processor.image_processor.image_mean)
        return super().prepare(expand2square(to_rgb(image), mean_color))
