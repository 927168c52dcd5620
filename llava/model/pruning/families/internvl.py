"""InternVL2.5 and InternVL3: tiles of 256 tokens and a thumbnail, each token an `<IMG_CONTEXT>` placeholder."""

from .placeholders import Placeholders


class InternVL(Placeholders):
    """`-hf` checkpoints and converted original ones; `<img>` and `</img>` around the tiles are text."""

    model_types = {"internvl": "InternVLForConditionalGeneration"}
    token_grid = "tiles"
