"""Models with random weights and published dimensions, for timing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from llava.model.language_model.configuration_llava import LlavaConfig
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.pruning.flops import DecoderShape
from llava.model.pruning.shapes import MODELS


def _clip(hidden: int, layers: int, heads: int, image_size: int) -> Mapping[str, int]:
    """Return a CLIP tower's configuration, MLP four times as wide, patches of 14 × 14 pixels."""
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    return MappingProxyType(sizes | {"num_attention_heads": heads, "image_size": image_size, "patch_size": 14})


CLIP_LARGE = _clip(1024, layers=24, heads=16, image_size=336)  # openai/clip-vit-large-patch14-336
CLIP_TINY = _clip(128, layers=5, heads=4, image_size=168)  # playground/checkpoints/llava-tiny


@dataclass(frozen=True)
class Shape:
    """What a random model is built from.

    visual_tokens:
        of one image; where images differ in it, of the paper's prompt, and for models that are not in the paper of
        1024 × 1024 pixels (InternVL3.5: four tiles and a thumbnail)
    clip, projector:
        the vision tower's configuration, and `mm_projector_type`; None where the tower is not a CLIP
    text:
        which of transformers' decoders it is
    video:
        whether prompts may show a video (`video_workload`)
    """

    decoder: DecoderShape
    vocabulary: int
    visual_tokens: int
    clip: Mapping[str, int] | None = None
    projector: str = "mlp2x_gelu"
    text: Literal["llama", "qwen2", "qwen3"] = "llama"
    video: bool = False


def _published(name: str, vocabulary: int, **more) -> Shape:
    return Shape(MODELS[name].shape, vocabulary, MODELS[name].visual_tokens, **more)


QWEN3_8B = DecoderShape(36, 4096, 12288, 32, 8, 128)  # Qwen/Qwen3-VL-8B-Instruct, OpenGVLab/InternVL3_5-8B-HF
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "llava-1.5-7b": _published("LLaVA-1.5-7B", 32000, clip=CLIP_LARGE),
        "llava-1.5-13b": _published("LLaVA-1.5-13B", 32000, clip=CLIP_LARGE),
        "qwen2-vl-7b": _published("Qwen2-VL-7B", 152064, text="qwen2"),
        "qwen2.5-vl-3b": Shape(DecoderShape(36, 2048, 11008, 16, 2, 128), 151936, 1413, text="qwen2", video=True),
        "qwen2.5-vl-7b": _published("Qwen2-VL-7B", 152064, text="qwen2", video=True),
        "internvl2.5-8b": _published("InternVL2.5-8B", 92553),
        "mobilevlm-v2-3b": _published("MobileVLM-V2-3B", 32000, clip=CLIP_LARGE, projector="ldpnetv2"),
        "qwen3-vl-8b": Shape(QWEN3_8B, 151936, 1024, text="qwen3"),
        "internvl3.5-8b": Shape(QWEN3_8B, 151936, 1280, text="qwen3"),
        "tiny": Shape(DecoderShape(12, 192, 512, 4, 4, 48), 672, 144, CLIP_TINY),
    }
)


def random_model(
    shape: Shape, layers: int, device: torch.device, dtype: torch.dtype, seed: int, vision: bool = False
) -> PreTrainedModel:
    """Build a model of random weights on `device` in `dtype`: no weight exists anywhere else, or in another dtype.

    The decoder has `layers` layers and its head. With `vision` it is LLaVA's model, CLIP tower and projector
    included, else a `LlamaForCausalLM`, `Qwen2ForCausalLM` or `Qwen3ForCausalLM` that reads embeddings. M-RoPE, which
    only changes how positions are counted, and DeepStack's three additions are left out.
    """
    decoder = shape.decoder
    settings = {
        "vocab_size": shape.vocabulary,
        "hidden_size": decoder.hidden,
        "intermediate_size": decoder.mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }

    def make() -> PreTrainedModel:
        if vision:
            config = LlavaConfig(**settings, mm_projector_type=shape.projector, mm_vision_tower="random CLIP")
            tower = CLIPVisionConfig(**shape.clip, hidden_act="quick_gelu", attn_implementation="sdpa")
            return LlavaLlamaForCausalLM(config, tower)
        config = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[shape.text](**settings)
        return AutoModelForCausalLM.from_config(config)

    return random_weights(make, device, dtype, seed)


def random_weights(
    make: Callable[[], PreTrainedModel], device: torch.device, dtype: torch.dtype, seed: int
) -> PreTrainedModel:
    """Return the model that `make` builds, in eval mode, its weights drawn on `device` in `dtype` and nowhere else."""
    with torch.device("meta"), _default_dtype(dtype):
        model = make()
    model = model.to_empty(device=device)
    torch.manual_seed(seed)
    model.initialize_weights()
    return model.eval().requires_grad_(False)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


PEAKED, FLAT = 6.0, 0.5
"""Standard deviation of the attention scores of the layer where a random model's influence lies, and of the others."""


@torch.no_grad()
def sharpen(layers, layer: int) -> None:
    """Rescale the queries of random layers, so that attention is peaked in `layer` and nearly even elsewhere.

    So single tokens have influence in that layer and in no other. With normalised inputs the standard deviation of the
    scores is σ_q σ_k D, where σ is that of the weights and D the hidden size; that of normed queries and keys is 1.
    """
    for index, block in enumerate(layers):
        if hasattr(block.self_attn, "q_norm"):
            block.self_attn.q_norm.weight.fill_(PEAKED if index == layer else FLAT)
            continue
        query, key = block.self_attn.q_proj.weight, block.self_attn.k_proj.weight
        spread = query.float().std() * key.float().std() * query.shape[1]
        query.mul_(float((PEAKED if index == layer else FLAT) / spread))


def text_split(prompt_tokens: int, system_tokens: int = 35) -> tuple[int, int]:
    """Return how many of a prompt's text tokens come before and after the images.

    Before them at most the 35 tokens that vicuna_v1's system sentence has in LLaVA, after them at least half.
    """
    before = min(system_tokens, prompt_tokens // 2)
    return before, prompt_tokens - before
