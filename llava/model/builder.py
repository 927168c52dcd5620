"""`load_pretrained_model`: a checkpoint in any known layout to tokenizer, model, processor and context length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import has_offloaded_params
from transformers import (
    AutoTokenizer,
    BaseImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import is_torchvision_available

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model import checkpoint
from llava.model.formats import read_layout, read_transformers_config
from llava.model.language_model.configuration_llava import LlavaConfig, read_config, read_json, read_vision_config
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.loading import build_model, quantization_config
from llava.model.parts import Parts, find_parts
from llava.model.processors import check_pixels, check_tokenizer, load_processor
from llava.model.pruning.devices import execution_device
from llava.model.pruning.families import model_class
from llava.utils import pick_device, pick_dtype

DEFAULT_CONTEXT_LENGTH = 2048
_HUB_OPTIONS = ("cache_dir", "revision", "token", "local_files_only")


def load_pretrained_model(
    model_path: str | Path,
    model_base: str | Path | None,
    model_name: str | None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str | torch.device = "cuda",
    **kwargs: Any,
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, BaseImageProcessor | ProcessorMixin, int]:
    """Load a model as LLaVA's callers know it: `(tokenizer, model, image_processor, context_len)`, in eval mode.

    Args:
        model_path: a folder or hub name, in LLaVA's original layout (LLaVA-1.5, LLaVA-1.6, MobileVLM-V2), InternVL's
            original layout, or transformers' own layout of a known family (docs/models.md). Also a projector alone
            (`mm_projector.bin`) or a LoRA (LLaVA's, or a PEFT folder), which is merged into its base model.
        model_base: the base model of a projector or LoRA; None: the one that a PEFT folder names.
        model_name: not read; the files say what they are.
        load_8bit: quantize the language model (bitsandbytes); tower, projector and head keep their dtype.
        load_4bit: the same with 4 bits.
        device_map: as for `from_pretrained`. "auto" with `device` "auto" or "cuda" spreads the model over the CUDA
            devices, and what they do not hold over the host's memory.
        device: "auto", and LLaVA's default ("cuda" with device_map "auto"), are CUDA, then MPS, then CPU.
        kwargs: `dtype` or `torch_dtype` (default float16, on CPU float32), `attn_implementation` (default sdpa),
            `use_flash_attn`, `min_pixels` and `max_pixels` (Qwen families: bounds of an image as the model sees it),
            `cache_dir`, `revision`, `token`, `local_files_only`; the rest goes to `from_pretrained`.

    Returns:
        The third item is the image processor of LLaVA's original layout, else a `ProcessorMixin` with a chat template.

    Raises:
        ValueError: a path, layout, device or option that cannot work, before any weight is read; weights that are
            missing, unexpected or mis-shaped, by name. Every weight of the model comes from the files.

    """
    hub = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
    pixels = [kwargs.pop(key, None) for key in ("min_pixels", "max_pixels")]
    quantization = quantization_config(load_8bit, load_4bit)
    automatic = str(device) == "auto" or (str(device) == "cuda" and device_map == "auto")
    target = pick_device("auto" if automatic else device)
    asked_dtype = (kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
    dtype = pick_dtype(next((given for given in asked_dtype if given is not None), None), target)
    if device_map is None or (device_map == "auto" and not (automatic and target.type == "cuda")):
        device_map = {"": target}
    if kwargs.pop("use_flash_attn", False):
        kwargs["attn_implementation"] = "flash_attention_2"
    kwargs.setdefault("attn_implementation", "sdpa")
    options = {"dtype": dtype, "device_map": device_map, "quantization_config": quantization, **kwargs}

    parts = find_parts(str(model_path), None if model_base is None else str(model_base), hub)
    layout = read_layout(parts.config.folder)
    check_pixels(layout.model_type, *pixels)
    if layout.kind == "llava":
        return _load_llava(parts, hub, options)
    if layout.kind == "internvl":
        # imported here because only this layout needs it
        from llava.model.internvl.model import load_internvl_original

        model, processor = load_internvl_original(parts, **options)
    else:
        config = read_transformers_config(parts.config.folder)
        processor = load_processor(parts.config.folder, config, *pixels)
        weights = parts.read_weights()
        checkpoint.check_floating(weights, parts.config.folder)
        kind = model_class(config.model_type)
        options |= {"config": config, "ignore_mismatched_sizes": True}
        model = build_model(kind, weights, parts.config.folder, processor.tokenizer, **options)
    return processor.tokenizer, model, processor, model.config.get_text_config().max_position_embeddings


def _load_llava(
    parts: Parts, hub: dict[str, Any], options: dict[str, Any]
) -> tuple[PreTrainedTokenizerBase, LlavaLlamaForCausalLM, BaseImageProcessor, int]:
    """Load LLaVA's original layout."""
    config = read_config(parts.config.folder)
    llava = LlavaFiles.find(config, parts.config.folder, parts.weights.folder, hub)
    model = llava.build(parts.read_weights(llava.tower), **options)
    context_len = config.max_sequence_length or config.tokenizer_model_max_length or DEFAULT_CONTEXT_LENGTH
    return llava.tokenizer, model, llava.image_processor, context_len


@dataclass(frozen=True)
class LlavaFiles:
    """All of a LLaVA in its original layout but the weights.

    `folder`: what errors name; `base`: where tokenizer and generation config are; `tower`: the vision tower;
    `expected`: the weights' names and shapes, on the meta device.
    """

    config: LlavaConfig
    folder: Path
    base: Path
    tower: checkpoint.Source
    vision_config: CLIPVisionConfig
    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor
    expected: dict[str, torch.Tensor]

    @classmethod
    def find(cls, config: LlavaConfig, folder: Path, base: Path, hub: dict[str, Any]) -> LlavaFiles:
        """Find all of it; raises `ValueError` for what is missing, and for a model that cannot be built."""
        tower = checkpoint.find_source(config.mm_vision_tower, "mm_vision_tower", hub, beside=folder)
        vision_config = read_vision_config(tower.folder, config)
        image_processor = _load_image_processor(tower.folder)
        tokenizer = load_tokenizer(base, config)
        with torch.device("meta"):
            expected = LlavaLlamaForCausalLM(config, vision_config).state_dict()
        return cls(config, folder, base, tower, vision_config, tokenizer, image_processor, expected)

    def build(self, weights: Mapping[str, torch.Tensor], **options: Any) -> LlavaLlamaForCausalLM:
        """Build the model of exactly these weights, tower and projector among them (`build_model`)."""
        weights = checkpoint.match_tower_names(weights, self.expected)
        tied = self.config.tie_word_embeddings and "lm_head.weight" not in weights
        expected = {name: weight for name, weight in self.expected.items() if not (tied and name == "lm_head.weight")}
        checkpoint.check_weights(expected, weights, self.folder)
        options |= {"config": self.config, "vision_config": self.vision_config}
        model = build_model(LlavaLlamaForCausalLM, weights, self.base, self.tokenizer, **options)
        newline = getattr(model.model, "image_newline", None)
        if newline is not None and newline.is_meta and not has_offloaded_params(model.model):
            # a device_map that names it alone: accelerate brings modules back, and this is a parameter beside them
            loaded = weights["model.image_newline"].to(execution_device(model.model), newline.dtype, copy=True)
            model.model.image_newline = torch.nn.Parameter(loaded)
        return model


def load_tokenizer(folder: Path, config: LlavaConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of LLaVA's original layout, with the special tokens that the configuration asks for.

    Raises `ValueError` if its files are missing, and as `check_tokenizer` does.
    """
    options: dict[str, Any] = {}
    if (folder / "tokenizer.model").exists():
        settings = folder / "tokenizer_config.json"
        given = read_json(settings) if settings.exists() else {}
        # what the absence of these keys meant when such checkpoints were trained
        options = {key: True for key in ("add_bos_token", "legacy") if given.get(key) is None}
    elif not (folder / "tokenizer.json").exists():
        raise ValueError(f"{folder} has no tokenizer: expected tokenizer.model or tokenizer.json")
    # a Llama configuration, because transformers takes model_type "llava" for its own, other layout
    tokenizer = AutoTokenizer.from_pretrained(folder, config=LlamaConfig(), padding_side="left", **options)
    if config.mm_use_im_start_end:
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    if config.mm_use_im_patch_token and len(tokenizer) < config.vocab_size:
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    check_tokenizer(tokenizer, config.vocab_size, folder)
    return tokenizer


def _load_image_processor(folder: Path) -> BaseImageProcessor:
    if not (folder / "preprocessor_config.json").exists():
        raise ValueError(f"the vision tower in {folder} has no preprocessor_config.json: images cannot be prepared")
    # asked for by name: the class of the other name, where torchvision is missing, would warn
    name = "CLIPImageProcessor" if is_torchvision_available() else "CLIPImageProcessorPil"
    return getattr(transformers, name).from_pretrained(folder)
