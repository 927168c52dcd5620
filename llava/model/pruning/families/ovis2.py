"""Ovis2: each visual token is a mixture of the rows of a visual embedding table (arXiv 2405.20797)."""

from .placeholders import Placeholders


class Ovis2(Placeholders):
    """`thisisiron/Ovis2-*-hf`, a Qwen2 decoder: tiles of 256 tokens; the indicators around and between them are text.

    Indicators have ids below zero's reach of the text vocabulary: the model replaces their embeddings by table rows.
    """

    model_types = {"ovis2": "Ovis2ForConditionalGeneration"}
