"""Any model of transformers whose prompt holds a placeholder per visual token, without a page of its own."""

from __future__ import annotations

import inspect

from torch import nn

from .placeholders import Placeholders

NO_ROWS = {
    "blip": "its decoder reads the image by cross-attention",
    "blip-2": "its generate hands the decoder embeddings alone, and nothing says which of them are visual",
    "chameleon": "its stack puts the image's tokens in place itself",
    "diffusion_gemma": "it writes blocks of tokens by diffusion, again and again over the prompt's cache",
    "evolla": "it reads proteins, by cross-attention",
    "git": "its stack encodes the image itself and puts it before the text",
    "idefics": "its decoder reads images by cross-attention",
    "instructblip": "its generate hands the decoder embeddings alone, and nothing says which of them are visual",
    "instructblipvideo": "its generate hands the decoder embeddings alone, and nothing says which of them are visual",
    "kosmos-2": "its decoder puts the image between embeddings itself, by a mask of its own",
    "kosmos-2.5": "its decoder puts the image between embeddings itself, by a mask of its own",
    "mistral4": "the class is a language model without images",
    "mllama": "its decoder reads images by cross-attention",
    "pi0": "it predicts a robot's actions, no text",
}
"""Models that read images otherwise than as tokens of a decoder's prompt, by `model_type`."""

CROSS_ATTENTION = {"encoder_hidden_states", "cross_attention_states", "image_encoder_embeddings"}
"""Parameters of decoders that read images beside their prompt."""


class AnyModel(Placeholders):
    """The decoder that `get_decoder` names, and the module around it that takes pixels."""

    placeholders = (*Placeholders.placeholders, "image_token_index", "video_token_index", "image_patch_id")
    passes_keywords = False

    @classmethod
    def of(cls, model: nn.Module) -> AnyModel:
        """Return the adapter of `model`, which needs a mask where no placeholder is named."""
        family = cls()
        family.needs_mask = all(getattr(model.config, name, None) is None for name in cls.placeholders)
        return family

    def decoder(self, model: nn.Module) -> nn.Module:
        """Return the innermost decoder, without a language-model head."""
        decoder = model.get_decoder()
        while (inner := decoder.get_decoder()) is not decoder:
            decoder = inner
        return decoder if hasattr(decoder, "layers") else getattr(decoder, "model", decoder)

    def entry(self, model: nn.Module) -> nn.Module:
        """Return the innermost module around the decoder that takes pixels."""
        name = name_in(model, self.decoder(model)) or ""
        around = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
        modules = [model.get_submodule(one) for one in around]
        return next((module for module in modules if any("pixel" in name for name in parameters_of(module))), model)


def obstacle_of(model: nn.Module) -> str | None:
    """Why no visual token of `model` can be removed from what its decoder reads, None where it can."""
    config = getattr(model, "config", None)
    if reason := NO_ROWS.get(getattr(config, "model_type", None)):
        return reason
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder: images enter the encoder"
    if not hasattr(model, "get_decoder"):
        return "it has no decoder"
    family = AnyModel()
    decoder = family.decoder(model)
    known = parameters_of(decoder)
    if not CROSS_ATTENTION.isdisjoint(known):
        return "its decoder reads images by cross-attention, not as tokens of the prompt"
    if not hasattr(decoder, "layers"):
        return f"its decoder {type(decoder).__name__} is no stack of layers that reads embeddings"
    if missing := {"inputs_embeds", "attention_mask", "position_ids", "past_key_values"} - set(known):
        return f"its decoder {type(decoder).__name__} takes no {' and no '.join(sorted(missing))}"
    return None


def parameters_of(module: nn.Module) -> list[str]:
    """Return the parameter names of a module's `forward`."""
    return list(inspect.signature(type(module).forward).parameters)


def name_in(model: nn.Module, part: nn.Module) -> str | None:
    """Return the name of a module of `model`, None where it is none."""
    return next((name for name, module in model.named_modules() if module is part), None)
