"""Ovis2: each visual token is a mixture of the rows of a visual embedding table (arXiv 2405.20797)."""

from .placeholders import Placeholders


class Ovis2(Placeholders):
    """`thisisiron/Ovis2-*-hf`, a Qwen2 decoder: tiles of 256 tokens.

    The indicators around and between tiles are text, although the model takes their embeddings from the visual table.
    """

    model_types = {"ovis2": "Ovis2ForConditionalGeneration"}
