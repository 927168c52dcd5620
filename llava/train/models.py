"""The model that is trained: everything but its weights first, for checking the data; then the weights, and LoRA."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llava.cli import UserError
from llava.conversation import find_template
from llava.model import checkpoint
from llava.model.builder import LlavaFiles, load_pretrained_model
from llava.model.formats import read_layout, read_transformers_config
from llava.model.inputs import Inputs, inputs_for
from llava.model.language_model.configuration_llava import LlavaConfig, read_config, read_json
from llava.model.loading import quantization_config
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.parts import Parts, find_parts
from llava.model.processors import load_processor
from llava.model.pruning.families import family_of
from llava.train.arguments import DataArguments, ModelArguments

_KEYS = (
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "mm_projector_type",
    "mm_use_im_start_end",
    "mm_use_im_patch_token",
    "mm_patch_merge_type",
)
PROJECTOR = "mm_projector."


@dataclass(frozen=True)
class Prepared:
    """A model before its weights are read.

    `parts`: its files; `config`: its configuration; `inputs`: writes its prompts; `image_tokens`: size (width, height)
    → tokens of such an image, None where only processing it says; `llava`: the files of LLaVA's layout, None for a
    model with a chat template.
    """

    parts: Parts
    config: Any
    inputs: Inputs
    image_tokens: Callable[[tuple[int, int]], int | None]
    llava: LlavaFiles | None

    @property
    def layers(self) -> int:
        """Layers of the decoder."""
        return self.config.get_text_config().num_hidden_layers

    def load(self, arguments: ModelArguments, dtype: torch.dtype, device: Any, attention: str) -> PreTrainedModel:
        """Read the weights; a new projector starts from `pretrain_mm_mlp_adapter` or at random."""
        quantized = (arguments.bits == 8, arguments.bits == 4)
        if self.llava is None:
            options = {"device": device, "dtype": dtype, "attn_implementation": attention}
            return load_pretrained_model(arguments.model_name_or_path, None, None, *quantized, **options)[1]
        weights = self.parts.read_weights(self.llava.tower)
        if not any(PROJECTOR in name for name in weights):
            weights |= checkpoint.read_tower_weights(self.llava.tower)
            weights |= {f"model.{name}": tensor for name, tensor in self._projector(arguments).items()}
        elif arguments.pretrain_mm_mlp_adapter:
            raise UserError("--pretrain_mm_mlp_adapter: the model has a projector already; leave it out")
        return self.llava.build(
            weights,
            dtype=dtype,
            device_map={"": device},
            quantization_config=quantization_config(*quantized),
            attn_implementation=attention,
        )

    def _projector(self, arguments: ModelArguments) -> dict[str, torch.Tensor]:
        if arguments.pretrain_mm_mlp_adapter:
            given = checkpoint.read_file(Path(arguments.pretrain_mm_mlp_adapter).expanduser())
            return {PROJECTOR + name.split(PROJECTOR)[1]: t for name, t in given.items() if PROJECTOR in name}
        return {
            PROJECTOR + name: tensor for name, tensor in build_vision_projector(self.llava.config).state_dict().items()
        }


def prepare(model: ModelArguments, data: DataArguments) -> Prepared:
    """Read everything of a model but its weights; raises `ValueError` for a model that cannot be trained."""
    hub = {"cache_dir": model.cache_dir} if model.cache_dir else {}
    parts = find_parts(str(Path(model.model_name_or_path).expanduser()), None, hub)
    folder = parts.config.folder
    raw = read_json(folder / "config.json")
    layout = None if raw.get("model_type") == "llama" else read_layout(folder)
    if layout is None or layout.has_conversations:
        return _prepare_llava(model, data, parts, hub, raw if layout is None else None)
    for name in ("version", "vision_tower", "pretrain_mm_mlp_adapter"):
        if getattr(model, name) is not None:
            raise UserError(
                f"--{name} is for LLaVA's layout; prompts of {layout.model_type} come from its chat template"
            )
    if layout.kind == "internvl":
        fused = "InternLM2" in str(raw["llm_config"].get("architectures"))
        if fused or model.lora_enable is False:
            why = "InternLM2's fused weights take no LoRA" if fused else "a LoRA alone is trained"
            raise UserError(
                f"{folder} is in InternVL's original layout, of which {why}: use transformers' layout (-hf)"
            )
        # imported here because only this layout needs them
        from llava.model.internvl.model import read_config as read_internvl
        from llava.model.internvl.processor import load_processor as load_internvl_processor

        config, processor = read_internvl(folder, raw), load_internvl_processor(folder, raw)
    else:
        config = read_transformers_config(folder)
        processor = load_processor(folder, config)
    return Prepared(parts, config, inputs_for(processor.tokenizer, processor, config), lambda size: None, None)


def _prepare_llava(
    model: ModelArguments, data: DataArguments, parts: Parts, hub: dict[str, Any], llama: dict[str, Any] | None
) -> Prepared:
    """Prepare a LLaVA, or a Llama (its config.json in `llama`) that becomes one."""
    folder = parts.config.folder
    if llama is None:
        config = read_config(folder)
    elif not model.vision_tower:
        raise UserError(f"{folder} is a language model: give --vision_tower, the CLIP that shall see for it")
    else:
        config = LlavaConfig.from_dict({key: value for key, value in llama.items() if key != "model_type"})
        for key in _KEYS:
            setattr(config, key, getattr(model, key))
    if model.vision_tower or (folder / config.mm_vision_tower).is_dir():
        given = Path(model.vision_tower or folder / config.mm_vision_tower).expanduser()
        config.mm_vision_tower = str(given.resolve()) if given.is_dir() else model.vision_tower
    config.image_aspect_ratio = data.image_aspect_ratio
    config.tokenizer_model_max_length = data.model_max_length
    version = model.version or config.conv_mode or "v1"
    find_template(version)
    config.conv_mode = None if version in ("plain", "v1", "vicuna_v1") else version
    config.use_mm_proj, config.tokenizer_padding_side = True, "right"
    for key in ("tune_mm_mlp_adapter", "freeze_mm_mlp_adapter"):
        setattr(config, key, getattr(model, key))
    config.mm_projector_lr = data.mm_projector_lr
    llava = LlavaFiles.find(config, folder, parts.weights.folder, hub)
    config.mm_hidden_size = llava.vision_config.hidden_size
    vision = llava.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2 + (config.mm_vision_select_feature == "cls_patch")
    count = getattr(build_vision_projector(config), "num_tokens", patches)
    tiled = config.image_aspect_ratio == "anyres"
    inputs = inputs_for(llava.tokenizer, llava.image_processor, config, version)
    return Prepared(parts, config, inputs, lambda size: None if tiled else count, llava)


def trainable(model: PreTrainedModel, arguments: ModelArguments, prepared: Prepared) -> nn.Module:
    """Set what is trained, in fp32, and return the model, with a LoRA inside a PEFT model.

    The vision tower never is. Of a model with a chat template, decoder and head are.
    """
    lora = arguments.lora_enable
    lora = prepared.llava is None and not arguments.tune_mm_mlp_adapter if lora is None else lora
    model.requires_grad_(False)
    if lora:
        model = _with_lora(model, arguments, prepared)
    plain = model.get_base_model() if lora else model
    decoder = family_of(plain).decoder(plain)
    if not (lora or arguments.tune_mm_mlp_adapter or arguments.freeze_backbone):
        for part in (decoder.layers, decoder.norm, decoder.embed_tokens, plain.get_output_embeddings()):
            part.requires_grad_(True)
    if prepared.llava is not None and not arguments.freeze_mm_mlp_adapter:
        decoder.mm_projector.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("nothing is trained: leave --freeze_backbone or --freeze_mm_mlp_adapter out")
    return model


def _with_lora(model: PreTrainedModel, arguments: ModelArguments, prepared: Prepared) -> nn.Module:
    # imported here because peft is part of the extra [train]
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    decoder = family_of(model).decoder(model)
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    linear = {name.rsplit(".", 1)[-1] for name, part in decoder.layers.named_modules() if isinstance(part, nn.Linear)}
    if arguments.bits != 16:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        bias=arguments.lora_bias,
        target_modules=rf"{re.escape(prefix)}\.layers\.\d+\.(.+\.)?({'|'.join(sorted(linear))})",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    base = prepared.parts.weights
    model.peft_config["default"].base_model_name_or_path = base.hub_name or str(base.folder.resolve())
    return model
