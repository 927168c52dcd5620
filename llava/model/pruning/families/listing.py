"""What can be pruned of transformers' image-text-to-text models: `python -m llava.model.pruning.families`.

Nothing is loaded: a model's default config names its decoder. tests/test_any_model.py builds and runs each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as LISTED
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from .any_model import NO_ROWS
from .base import FAMILIES
from .decoder import DECODERS, PLAIN

ALL, BEFORE, REFUSED = "all methods", "before the decoder", "refused"

UNLIKE = {
    "AriaTextModel": "experts behind a router of its own",
    "CohereCompassTextModel": "DeepStack in parallel blocks",
    "DeepseekOcr2TextModel": "experts behind a router of its own",
    "DeepseekV3Model": "keys and values from one latent vector",
    "Dots3NoteTextModel": "keys chosen by an indexer",
    "Ernie4_5_VLMoeTextModel": "experts chosen by token type",
    "Exaone4Model": "layers without positions among sliding windows",
    "Gemma3nTextModel": "several streams per token (AltUp) and inputs per layer",
    "Gemma4TextModel": "inputs per layer, layers that read another's keys",
    "Gemma4UnifiedTextModel": "layers that read another's keys",
    "Glm5NextTextModel": "keys chosen by an indexer, several streams per token",
    "GlmOcrTextModel": "a stack that nobody has compared yet",
    "Granite4VisionTextModel": "DeepStack in later layers, embeddings scaled by the stack",
    "GraniteDoclingTextModel": "DeepStack, embeddings scaled by the stack",
    "HunYuanVLTextModel": "four rows of positions",
    "HyperCLOVAXModel": "embeddings scaled by the stack",
    "Inkling2TextModel": "convolutions beside attention, relative positions",
    "InklingTextModel": "convolutions beside attention, relative positions",
    "Lfm3Model": "convolutions beside sliding windows",
    "Llama4TextModel": "chunks, layers without positions, scores scaled by position",
    "MiniMaxM3VLTextModel": "keys chosen by an indexer",
    "MistralLarge4TextModel": "keys chosen by an indexer",
    "Molmo2TextModel": "image tokens that read each other both ways, projections of its own",
    "MuseGlimmerTextModel": "layers without positions among sliding windows",
    "MuseSparkTextModel": "layers without positions among sliding windows",
    "NemotronHModel": "Mamba layers, and layers that are experts alone",
    "OPTModel": "learned positions",
    "PaddleOCRTextModel": "a stack that nobody has compared yet",
    "PersimmonModel": "a stack that nobody has compared yet",
    "Qwen2_5OmniThinkerTextModel": "a stack that nobody has compared yet",
    "Qwen3OmniMoeThinkerTextModel": "a stack that nobody has compared yet",
    "Qwen4ExpTextModel": "keys chosen by an indexer, several streams per token",
    "Step3p7TextModel": "sliding windows with a count of heads of their own",
    "UnlimitedOcrTextModel": "a window that skips the image",
}
"""What decoders that the engine does not run have beside plain attention."""

_OTHER = {
    "deepseek_ocr2_text": "DeepseekOcr2TextModel",
    "emu3_text_model": "Emu3TextModel",
    "ernie4_5_vl_moe_text": "Ernie4_5_VLMoeTextModel",
    "granite4_vision_text": "Granite4VisionTextModel",
    "paddleocr_vl_text": "PaddleOCRTextModel",
    "qwen2_5_omni_text": "Qwen2_5OmniThinkerTextModel",
    "qwen3_omni_moe_text": "Qwen3OmniMoeThinkerTextModel",
    "step3p5": "Step3p7TextModel",
    "unlimited_ocr_text": "UnlimitedOcrTextModel",
}
"""Decoders that transformers' own table lacks, by the `model_type` of their config."""


@dataclass(frozen=True)
class Entry:
    """One model of the list.

    decoder:
        class of its decoder stack, None where there is none
    runs:
        which methods it takes
    page:
        whether a family's page says how to load and prompt it: commands take it by `--model-path`
    why:
        what keeps it from more; "" for what takes all methods and has a page
    """

    model_type: str
    model: str
    decoder: str | None
    runs: Literal["all methods", "before the decoder", "refused"]
    page: bool
    why: str = ""


def listing() -> list[Entry]:
    """Return every model of the installed transformers' image-text-to-text list, in its order."""
    return [entry_of(model_type) for model_type in LISTED]


def entry_of(model_type: str) -> Entry:
    """Return what is known of one `model_type` of the list."""
    model, page = LISTED[model_type], any(model_type in family.model_types for family in FAMILIES)
    if model_type in NO_ROWS:
        return Entry(model_type, model, None, REFUSED, page, NO_ROWS[model_type])
    config = CONFIG_MAPPING[model_type]()
    if config.is_encoder_decoder:
        return Entry(model_type, model, None, REFUSED, page, "it is an encoder-decoder: images enter the encoder")
    kind = config.get_text_config().model_type
    decoder = _OTHER.get(kind) or MODEL_MAPPING_NAMES.get(kind)
    known = any(model in family.model_types.values() for family in FAMILIES)
    if decoder in (DECODERS if known else PLAIN):
        why = "" if page else "no page: prune() takes it, the commands do not"
        return Entry(model_type, model, decoder, ALL, page, why)
    return Entry(model_type, model, decoder, BEFORE, page, UNLIKE.get(decoder, "a stack that nobody has compared yet"))
