"""`load_pretrained_model`: a LLaVA checkpoint in its original layout to tokenizer, model and image processor."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    PreTrainedTokenizerBase,
)

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.model import checkpoint
from llava.model.language_model.configuration_llava import LlavaConfig, read_config, read_json, read_vision_config
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
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
) -> tuple[PreTrainedTokenizerBase, LlavaLlamaForCausalLM, CLIPImageProcessorPil, int]:
    """Load LLaVA as its callers know it: `(tokenizer, model, image_processor, context_len)`, the model in eval mode.

    `model_path`: a folder in LLaVA's original layout or a hub name; with `model_base` (a Llama folder or hub name) the
    path holds a projector alone (`mm_projector.bin`). `model_name` only serves to recognise LoRA checkpoints.
    `device="auto"`, and LLaVA's default (`device_map="auto", device="cuda"`), take CUDA, then MPS, then CPU; several
    CUDA devices share the model. `kwargs`: `dtype` or `torch_dtype` (default float16, on CPU float32),
    `attn_implementation` (default sdpa), `use_flash_attn`, `cache_dir`, `revision`, `token`, `local_files_only`; the
    rest goes to `from_pretrained`. 8 and 4 bits (bitsandbytes) leave tower, projector and head as they are.

    Every weight comes from the files: raises `ValueError` naming weights that are missing, unexpected or mis-shaped,
    and for a path, layout, device or option that cannot work, before any weight is read.
    """
    hub = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
    quantization = _quantization(load_8bit, load_4bit)
    automatic = str(device) == "auto" or (str(device) == "cuda" and device_map == "auto")
    target = pick_device("auto" if automatic else device)
    asked_dtype = (kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
    dtype = pick_dtype(next((given for given in asked_dtype if given is not None), None), target)
    if device_map is None or (device_map == "auto" and not (automatic and torch.cuda.device_count() > 1)):
        device_map = {"": target}
    if kwargs.pop("use_flash_attn", False):
        kwargs["attn_implementation"] = "flash_attention_2"
    kwargs.setdefault("attn_implementation", "sdpa")

    source = checkpoint.find_source(str(model_path), "model_path", hub)
    _refuse_lora(source.folder, model_name or "")
    config = read_config(source.folder)
    tower = checkpoint.find_source(config.mm_vision_tower, "mm_vision_tower", hub, beside=source.folder)
    vision_config = read_vision_config(tower.folder, config)
    image_processor = _load_image_processor(tower.folder)
    base = source if model_base is None else checkpoint.find_source(str(model_base), "model_base", hub)
    tokenizer = load_tokenizer(base.folder, config)

    with torch.device("meta"):
        expected = LlavaLlamaForCausalLM(config, vision_config).state_dict()
    weights = _gather_weights(source, base, tower, expected, config.tie_word_embeddings)
    options = {"dtype": dtype, "device_map": device_map, "quantization_config": quantization, **kwargs}
    model = _load_model(config, vision_config, weights, options)
    if (base.folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(base.folder)
        # there it is the context length, copied in by old transformers; generate would warn of it beside max_new_tokens
        model.generation_config.max_length = None
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
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


def _load_image_processor(folder: Path) -> CLIPImageProcessorPil:
    if not (folder / "preprocessor_config.json").exists():
        raise ValueError(f"the vision tower in {folder} has no preprocessor_config.json: images cannot be prepared")
    return CLIPImageProcessorPil.from_pretrained(folder)


def _quantization(load_8bit: bool, load_4bit: bool) -> BitsAndBytesConfig | None:
    if not (load_8bit or load_4bit):
        return None
    if load_8bit and load_4bit:
        raise ValueError("load_8bit and load_4bit were both given: choose one")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("load_8bit and load_4bit need bitsandbytes, which is not installed: pip install bitsandbytes")
    keep = {"llm_int8_skip_modules": ["vision_tower", "mm_projector", "lm_head"]}
    if load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, **keep)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=torch.float16,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
        **keep,
    )


def _refuse_lora(folder: Path, model_name: str) -> None:
    files = ("adapter_config.json", "adapter_model.bin", "adapter_model.safetensors", "non_lora_trainables.bin")
    named = "lora" in model_name.lower() and not checkpoint.has_weights(folder)
    if named or any((folder / file).exists() for file in files):
        raise ValueError(f"{folder} is a LoRA checkpoint: merge it into its base model and load the merged folder")


def _gather_weights(
    source: checkpoint.Source,
    base: checkpoint.Source,
    tower: checkpoint.Source,
    expected: dict[str, torch.Tensor],
    tied_head: bool,
) -> dict[str, torch.Tensor]:
    """Read the weights of all parts and check them against the model's own names and shapes, `expected`."""
    weights = checkpoint.read_weights(base)
    if base is not source:
        path = source.folder / "mm_projector.bin"
        if not path.exists():
            raise ValueError(f"{source.folder} has no mm_projector.bin: with a model_base, it must hold the projector")
        for name, tensor in checkpoint.read_file(path).items():
            weights[name if name.startswith("model.") else f"model.{name}"] = tensor
    if not checkpoint.has_tower(weights):
        weights |= checkpoint.read_tower_weights(tower)
    weights = checkpoint.match_tower_names(checkpoint.without_stale_buffers(weights), expected)
    if tied_head and "lm_head.weight" not in weights:
        expected = {name: tensor for name, tensor in expected.items() if name != "lm_head.weight"}
    checkpoint.check_weights(expected, weights, source.folder)
    return weights


def _load_model(
    config: LlavaConfig,
    vision_config: CLIPVisionConfig,
    weights: dict[str, torch.Tensor],
    options: dict[str, Any],
) -> LlavaLlamaForCausalLM:
    model, report = LlavaLlamaForCausalLM.from_pretrained(
        None, config=config, vision_config=vision_config, state_dict=weights, output_loading_info=True, **options
    )
    failed = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if failed:
        raise RuntimeError(f"transformers did not load every weight as it is in the files: {failed}")
    # weights that needed no conversion are still the mapped file: they would change, or crash, with it
    mapped = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    for parameter in model.parameters():
        if parameter.untyped_storage().data_ptr() in mapped:
            parameter.data = parameter.data.clone()
    return model
