"""Idefics2: the token that closes an image opens the next one, and a word directly after it gets a space."""

from __future__ import annotations

import re
from dataclasses import replace

from PIL import Image

from .base import ProcessedImage
from .processor import ProcessorInputs


class Idefics2Inputs(ProcessorInputs):
    """`HuggingFaceM4/idefics2-8b`: what its processor does across images and words, done to the prompt's text."""

    def prepare(self, image: Image.Image) -> ProcessedImage:
        """Run the processor; the closing token is the prompt's, which knows what follows."""
        made = super().prepare(image)
        return replace(made, ids=made.ids[:-1])

    def tokenize(self, prompt: str) -> list[int]:
        """Return the row of a prompt's text, one closing token after images that follow each other."""
        image, closing = self.processor.image_token, self.processor.fake_image_token
        prompt = re.sub(f"{image}(?!{image})", image + closing, prompt)
        return super().tokenize(re.sub(rf"{closing}(?=[^\s<])", f"{closing} ", prompt))
