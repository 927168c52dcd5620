"""`load_pretrained_model`: a checkpoint in any known layout to tokenizer, model, processor and context length."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoTokenizer,
    BaseImageProcessor,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.utils import is_torchvision_available

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model import checkpoint
from llava.model.language_model.configuration_llava import LlavaConfig, read_config, read_json, read_vision_config
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.layouts import read_layout
from llava.model.loading import (
    from_state_dict,
    load_transformers,
    raise_if_reported,
    set_generation_config,
)
from llava.model.parts import Parts, find_parts
from llava.model.processors import check_pixels
from llava.model.silence import silence
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

    `model_path`: a folder or a hub name, in one of these layouts, told by its config.json:
    LLaVA's original (LLaVA-1.5, MobileVLM-V2; with `model_base`, a Llama folder or hub name, the path holds a projector
    alone, `mm_projector.bin`); transformers' own of `llava-hf/llava-1.5-*-hf`, `llava-hf/llava-v1.6-*-hf`, Qwen2-VL,
    Qwen2.5-VL, LLaVA-OneVision, InternVL2.5 and 3 (`-hf`); and InternVL's original. Of all but the first the third
    item is the family's processor (`ProcessorMixin`), which has a chat template.
    A LoRA (LLaVA's with `model_base`, or a PEFT folder on any of these) is merged into its base model.
    `model_name` is not read: the files say what they are.
    `device="auto"`, and LLaVA's default (`device_map="auto", device="cuda"`), take CUDA, then MPS, then CPU; several
    CUDA devices share the model. `kwargs`: `dtype` or `torch_dtype` (default float16, on CPU float32),
    `attn_implementation` (default sdpa), `use_flash_attn`, `min_pixels` and `max_pixels` (Qwen families: bounds of an
    image as the model sees it), `cache_dir`, `revision`, `token`, `local_files_only`; the rest goes to
    `from_pretrained`. 8 and 4 bits (bitsandbytes) leave tower, projector and head as they are.

    Every weight comes from the files: raises `ValueError` naming weights that are missing, unexpected or mis-shaped,
    and for a path, layout, device or option that cannot work, before any weight is read.
    """
    hub = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
    pixels = {key: kwargs.pop(key) for key in ("min_pixels", "max_pixels") if kwargs.get(key) is not None}
    quantization = quantization_config(load_8bit, load_4bit)
    automatic = str(device) == "auto" or (str(device) == "cuda" and device_map == "auto")
    target = pick_device("auto" if automatic else device)
    asked_dtype = (kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
    dtype = pick_dtype(next((given for given in asked_dtype if given is not None), None), target)
    if device_map is None or (device_map == "auto" and not (automatic and torch.cuda.device_count() > 1)):
        device_map = {"": target}
    if kwargs.pop("use_flash_attn", False):
        kwargs["attn_implementation"] = "flash_attention_2"
    kwargs.setdefault("attn_implementation", "sdpa")
    options = {"dtype": dtype, "device_map": device_map, "quantization_config": quantization, **kwargs}

    parts = find_parts(str(model_path), None if model_base is None else str(model_base), hub)
    layout = read_layout(parts.config.folder)
    check_pixels(layout.model_type, pixels.get("min_pixels"), pixels.get("max_pixels"))
    if layout.kind == "llava":
        return _load_llava(parts, hub, options)
    if layout.kind == "internvl":
        model, processor = _load_internvl(parts, options)
    else:
        model, processor = load_transformers(parts, options, pixels)
    return processor.tokenizer, model.eval(), processor, model.config.get_text_config().max_position_embeddings


def _load_internvl(parts: Parts, options: dict[str, Any]) -> tuple[PreTrainedModel, ProcessorMixin]:
    # imported here because only this layout needs it
    from llava.model.internvl_original import load_internvl_original

    if options.pop("quantization_config") is not None:
        raise ValueError(
            f"{parts.config.folder} is in InternVL's original layout, which load_8bit and load_4bit do not serve: "
            "load the -hf checkpoint"
        )
    with silence():
        return load_internvl_original(parts, **options)


def _load_llava(
    parts: Parts, hub: dict[str, Any], options: dict[str, Any]
) -> tuple[PreTrainedTokenizerBase, LlavaLlamaForCausalLM, BaseImageProcessor, int]:
    """Load LLaVA's original layout."""
    folder, base = parts.config.folder, parts.weights.folder
    config = read_config(folder)
    tower = checkpoint.find_source(config.mm_vision_tower, "mm_vision_tower", hub, beside=folder)
    vision_config = read_vision_config(tower.folder, config)
    image_processor = _load_image_processor(tower.folder)
    tokenizer = load_tokenizer(base, config)

    with torch.device("meta"):
        expected = LlavaLlamaForCausalLM(config, vision_config).state_dict()
    weights = _gather_weights(parts, tower, expected, config.tie_word_embeddings)
    options = {"config": config, "vision_config": vision_config, **options}
    model, report = from_state_dict(LlavaLlamaForCausalLM, weights, **options)
    raise_if_reported(report)
    set_generation_config(model, base, tokenizer)
    context_len = config.max_sequence_length or config.tokenizer_model_max_length or DEFAULT_CONTEXT_LENGTH
    return tokenizer, model.eval(), image_processor, context_len


def load_tokenizer(folder: Path, config: LlavaConfig) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer, left padding, with the special tokens that the configuration asks for.

    Padding uses the tokenizer's own pad token, else unk, else eos. Raises `ValueError` if there is none of them, if the
    files are missing, or if the tokenizer has more tokens than the model.
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
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        if tokenizer.pad_token_id is None:
            raise ValueError(f"the tokenizer in {folder} has neither a pad, unk nor eos token: batches need one")
    if config.mm_use_im_start_end:
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    if config.mm_use_im_patch_token and len(tokenizer) < config.vocab_size:
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model {config.vocab_size} (vocab_size): "
            f"the files do not belong together"
        )
    return tokenizer


def _load_image_processor(folder: Path) -> BaseImageProcessor:
    if not (folder / "preprocessor_config.json").exists():
        raise ValueError(f"the vision tower in {folder} has no preprocessor_config.json: images cannot be prepared")
    # asked for by name: the class of the other name, where torchvision is missing, would warn
    name = "CLIPImageProcessor" if is_torchvision_available() else "CLIPImageProcessorPil"
    return getattr(transformers, name).from_pretrained(folder)


def quantization_config(load_8bit: bool, load_4bit: bool) -> BitsAndBytesConfig | None:
    """Return what `from_pretrained` takes; `ValueError` for both at once and where bitsandbytes is missing."""
    if not (load_8bit or load_4bit):
        return None
    if load_8bit and load_4bit:
        raise ValueError("load_8bit and load_4bit were both given: choose one")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("load_8bit and load_4bit need bitsandbytes, which is not installed: pip install bitsandbytes")
    keep = {"llm_int8_skip_modules": ["vision_tower", "mm_projector", "multi_modal_projector", "visual", "lm_head"]}
    if load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, **keep)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.float16,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
        **keep,
    )


def _gather_weights(
    parts: Parts, tower: checkpoint.Source, expected: dict[str, torch.Tensor], tied_head: bool
) -> dict[str, torch.Tensor]:
    """Read the weights of all parts and check them against the model's own names and shapes, `expected`."""
    weights = checkpoint.match_tower_names(parts.read_weights(tower), expected)
    if tied_head and "lm_head.weight" not in weights:
        expected = {name: tensor for name, tensor in expected.items() if name != "lm_head.weight"}
    checkpoint.check_weights(expected, weights, parts.config.folder)
    return weights
