"""Layout and depth of a checkpoint folder, from config.json alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from llava.conversation import find_template
from llava.model.language_model.configuration_llava import MODEL_TYPES, read_config, read_json
from llava.model.pruning.families import model_types
from llava.model.silence import silence

INTERNVL_ORIGINAL = "internvl_chat"


@dataclass(frozen=True)
class Layout:
    """How a checkpoint is stored, its `model_type`, its decoder layers; `limit`: tokens that a prompt may have;
    `conv_mode`: the conversation template that its config.json names.

    `kind`: "llava" is LLaVA's original layout (LLaVA-1.5 and 1.6, MobileVLM-V2), whose prompts follow conversation
    templates; "transformers" has a processor with a chat template, and "internvl" (its original layout) gets one.
    """

    kind: Literal["llava", "transformers", "internvl"]
    model_type: str
    layers: int
    limit: int | None
    conv_mode: str | None = None

    @property
    def has_conversations(self) -> bool:
        """Whether LLaVA's conversation templates (conv_mode) write the prompts."""
        return self.kind == "llava"

    def check_conv_mode(self, conv_mode: str | None) -> None:
        """Raise `ValueError` for an unknown template, and for one given to a model that has a chat template."""
        if conv_mode is not None and not self.has_conversations:
            raise ValueError(
                f"the conversation template {conv_mode!r} (conv_mode) was given, but the prompts of model_type "
                f"{self.model_type!r} come from its own chat template: leave conv_mode out"
            )
        if conv_mode is not None:
            find_template(conv_mode)


def read_layout(folder: Path) -> Layout:
    """Return a checkpoint folder's layout.

    Raises `ValueError` for an unknown `model_type`, with the known ones, and for a configuration that cannot be used.
    """
    path, raw = folder / "config.json", read_json(folder / "config.json")
    kind = raw.get("model_type")
    if kind == INTERNVL_ORIGINAL:
        decoder = raw.get("llm_config")
        layers = decoder.get("num_hidden_layers") if isinstance(decoder, dict) else None
        if not isinstance(layers, int):
            raise ValueError(f"{path} has no num_hidden_layers in llm_config: expected InternVL's original layout")
        return Layout("internvl", kind, layers, decoder.get("max_position_embeddings"))
    if kind in model_types() and (kind not in MODEL_TYPES or "text_config" in raw):
        decoder = read_transformers_config(folder).get_text_config()
        return Layout("transformers", kind, decoder.num_hidden_layers, decoder.max_position_embeddings)
    if kind not in MODEL_TYPES:
        known = ", ".join(dict.fromkeys((*MODEL_TYPES, *model_types(), INTERNVL_ORIGINAL)))
        raise ValueError(f"{path} has model_type {kind!r}, which is not known here; known are {known}")
    config = read_config(folder)
    return Layout("llava", kind, config.num_hidden_layers, config.tokenizer_model_max_length, config.conv_mode)


def read_transformers_config(folder: Path) -> PreTrainedConfig:
    """Read the configuration of a model in transformers' own layout; `ValueError` if it cannot be used."""
    path = folder / "config.json"
    if read_json(path).get("quantization_config"):
        raise ValueError(f"{path} is of a quantised checkpoint: load the original, with load_8bit or load_4bit")
    try:
        with silence():
            return AutoConfig.from_pretrained(folder)
    except (AttributeError, KeyError, OSError, TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a configuration that transformers reads: {reason}") from error
