"""LFM2-VL: most layers are gated short convolutions, the others attend; images of any size in tiles."""

from torch import nn

from .placeholders import Placeholders


class Lfm2VL(Placeholders):
    """`LiquidAI/LFM2-VL-*`; tokens around tiles and thumbnail are text."""

    model_types = {"lfm2_vl": "Lfm2VlForConditionalGeneration"}

    def norm(self, decoder: nn.Module) -> nn.Module:
        """Return the norm that the decoder names after the embeddings, and applies at the end."""
        return decoder.embedding_norm
