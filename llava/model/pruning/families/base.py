"""`Family`: all that is particular to a model family, and nothing of any method. Each file registers its family.

What a file declares is read by the engine (which modules, which tokens), and by loading and inputs (`model_types`,
`inputs`), so that adding a family is adding this one file.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ..layers import LayerKind, kinds_of
from ..vision import Encoder

FAMILIES: list[type[Family]] = []
"""The families, in the order in which they were defined."""


class Family:
    """Adapter of one model family; a subclass that names its `models` or `model_types` is registered.

    model_types:
        `model_type` of a checkpoint's config.json, and the class that loads it: its name in transformers (imported when
        a model of it is loaded), or a class from elsewhere; empty where this package has a loader of its own
    models:
        the model classes it serves, for messages; those of `model_types` unless given
    inputs:
        how questions and images become inputs: `chat_template` (the checkpoint's processor), or `conversation`
        (LLaVA's templates and image markers)
    needs_mask:
        True where only the caller can know which tokens are visual
    passes_keywords:
        whether the entry module's `forward` passes unknown keywords down to the decoder
    makes_masks:
        True where the entry module makes the decoder's attention masks, so that the prompts' own has to get past it
    no_reuse:
        why rows before a question depend on it, so that no prefix cache works; completes "it …"
    token_grid:
        how visual tokens lie over a picture, for drawing them: `square` (one grid over a padded or cropped square),
        `grid` (one grid over the whole picture), `tiles` (InternVL's: equal tiles, then a thumbnail), `anyres`
        (LLaVA-NeXT's: a thumbnail, then tiles with a newline token after each row); None: not known
    """

    models: ClassVar[str]
    model_types: ClassVar[dict[str, str | type[nn.Module]]] = {}
    inputs: ClassVar[str] = "chat_template"
    needs_mask: ClassVar[bool] = False
    passes_keywords: ClassVar[bool] = True
    makes_masks: ClassVar[bool] = False
    no_reuse: ClassVar[str | None] = None
    token_grid: ClassVar[str | None] = None

    def __init_subclass__(cls) -> None:
        if "model_types" in vars(cls):
            cls.models = vars(cls).get("models", ", ".join(dict.fromkeys(map(_name, cls.model_types.values()))))
        if "models" in vars(cls):
            FAMILIES.append(cls)

    @classmethod
    def knows(cls, model: nn.Module) -> bool:
        """Whether `model` is of this family."""
        return not {kind.__name__ for kind in type(model).__mro__}.isdisjoint(map(_name, cls.model_types.values()))

    def decoder(self, model: nn.Module) -> nn.Module:
        """Return the decoder stack: `layers`, `rotary_emb`, `embed_tokens`, `config`, and its `forward`."""
        raise NotImplementedError

    def norm(self, decoder: nn.Module) -> nn.Module:
        """Return the norm after the stack's last layer."""
        return decoder.norm

    def entry(self, model: nn.Module) -> nn.Module | None:
        """Return the module whose inputs show the visual tokens.

        None where the model sends `visual_mask` to its decoder by itself.
        """
        return None

    def arguments(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return what the entry module is called with, by name."""
        inputs = inspect.signature(type(module).forward).bind_partial(module, *args, **kwargs).arguments
        return inputs | inputs.pop("kwargs", {})

    def visual_mask(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Return bool [B, T] from the entry module's inputs by name; None where they do not show it.

        Raises:
            ValueError: the inputs hold images, but no visual token.

        """
        return None

    def grid(self, model: nn.Module, inputs: dict[str, Any]) -> np.ndarray | None:
        """Return int [B, T, 4] from the entry module's inputs: image or video of the prompt, frame, row, column.

        −1 for text and for what is not known. None where the inputs do not show it; each run of visual tokens is then
        taken for an image.
        """
        return None

    def holds_video(self, inputs: dict[str, Any]) -> bool:
        """Whether the entry module's inputs hold a video."""
        return False

    def prompt_width(self, inputs: torch.Tensor) -> int | None:
        """Return the width of prompts given to `generate` as ids [B, T] or embeddings [B, T, D], in decoder tokens.

        None where `generate` cannot append tokens to a prompt before the decoder has read it.
        """
        return inputs.shape[1]

    def positions(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Return int64 position ids as the decoder's rotary embedding takes them; idempotent.

        position_ids [B, T], or whatever leading rows the model gives to its decoder.
        """
        return position_ids

    def layers(self, decoder: nn.Module) -> tuple[LayerKind, ...]:
        """Return what each layer of the decoder stack does."""
        return kinds_of(decoder)

    def added(self, given: dict[str, Any], embeds: torch.Tensor) -> dict[int, torch.Tensor]:
        """Take features that the decoder adds after layers out of the keywords `given` to it.

        Returns [B, T, D] by the layer after which it is added; `embeds` [B, T, D].
        """
        return {}

    def blocks(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Return int [B, T] from the entry module's inputs: tokens of one number ≥ 0 read each other both ways.

        None where every token reads those before it alone.
        """
        return None

    def encoder(self, model: nn.Module) -> Encoder | None:
        """Return where the image encoder is, for methods that read it; None where it is not as `Encoder` says.

        Raises:
            ValueError: this model projects something else than the output of one encoder layer.

        """
        return None


def _name(kind: str | type) -> str:
    return kind if isinstance(kind, str) else kind.__name__
