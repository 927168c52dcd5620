"""What a model family tells the engine: all that is particular to it, nothing of the method."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from ..vision import Encoder


class Family:
    """Adapter of one model family.

    models:
        the model classes it serves, for messages
    needs_mask:
        True where only the caller can know which tokens are visual
    """

    models: ClassVar[str]
    needs_mask: ClassVar[bool] = False

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        """Whether `model` is of this family."""
        raise NotImplementedError

    def decoder(self, model: nn.Module) -> nn.Module:
        """Return the decoder stack: `layers`, `norm`, `rotary_emb`, `embed_tokens`, `config`, and its `forward`."""
        raise NotImplementedError

    def entry(self, model: nn.Module) -> nn.Module | None:
        """Return the module whose inputs tell the visual tokens and whose `forward` hands unknown keywords down.

        None where the model sends `visual_mask` to its decoder by itself.
        """
        return None

    def visual_mask(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Return bool [B, T] from the entry module's inputs by name; None where they do not tell.

        Raises:
            ValueError: the inputs hold images, but no visual token.

        """
        return None

    def positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Return int64 position ids as the decoder's rotary embedding takes them; idempotent.

        position_ids [B, T], or whatever leading rows the model gives to its decoder.
        """
        return position_ids

    def encoder(self, model: nn.Module) -> Encoder | None:
        """Return where the image encoder is, for methods that read it; None where it is not as `Encoder` says.

        Raises:
            ValueError: this model projects something else than the output of one encoder layer.

        """
        return None
