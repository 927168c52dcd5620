"""The random LLaVA that published code was run on (tests/peers), drawn by numpy's frozen generator in a fixed order.

Full geometry at a tiny width: 576 patches, 24 CLIP layers, 20 decoder layers, 35 tokens before an image, so that what
published code has as constants fits. Weights are sharpened so that attention is not flat.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from llava_fixtures import LLAVA, TOWER
from transformers import CLIPVisionConfig

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.language_model.configuration_llava import LlavaConfig
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

WIDTH, MLP, LAYERS, VOCABULARY = 64, 128, 20, 672
SIDE, PATCH, TOWER_LAYERS = 336, 14, 24
PREFIX = 35


def make_model() -> tuple[LlavaLlamaForCausalLM, str]:
    """Return the model, and a fingerprint of its weights."""
    decoder, tower = _weights()
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    config = LlavaConfig(
        **LLAVA
        | {
            "mm_hidden_size": WIDTH,
            "tokenizer_model_max_length": 2048,
            "hidden_size": WIDTH,
            "intermediate_size": MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": VOCABULARY,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
    )
    model = LlavaLlamaForCausalLM(config, vision).eval()
    state = decoder | {TOWER + name: array for name, array in tower.items()}
    names = {name.replace("vision_model.", ""): name for name in model.state_dict()}  # releases differ in this level
    model.load_state_dict({names[name.replace("vision_model.", "")]: torch.from_numpy(state[name]) for name in state})
    digest = hashlib.sha256()
    for part in (decoder, tower):
        for name in sorted(part):
            digest.update(name.encode() + part[name].tobytes())
    return model, digest.hexdigest()


def _weights() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Decoder with projector, and tower, by LLaVA's names; the order of the draws matters."""
    random = np.random.RandomState(7)
    decoder: dict[str, np.ndarray] = {}
    tower: dict[str, np.ndarray] = {}

    def draw(into, name, scale, *shape, offset=0):
        into[name] = (offset + (random.standard_normal(shape) * scale).astype(np.float32)).astype(np.float32)

    draw(decoder, "model.embed_tokens.weight", 1.0, VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        for name, scale in (("q", 0.2), ("k", 0.2), ("v", 0.15), ("o", 0.1)):
            draw(decoder, f"{at}self_attn.{name}_proj.weight", scale, WIDTH, WIDTH)
        for name, scale, shape in (
            ("gate", 0.15, (MLP, WIDTH)),
            ("up", 0.15, (MLP, WIDTH)),
            ("down", 0.05, (WIDTH, MLP)),
        ):
            draw(decoder, f"{at}mlp.{name}_proj.weight", scale, *shape)
        for name in ("input", "post_attention"):
            draw(decoder, f"{at}{name}_layernorm.weight", 0.1, WIDTH, offset=1)
    draw(decoder, "model.norm.weight", 0.1, WIDTH, offset=1)
    draw(decoder, "lm_head.weight", 0.3, VOCABULARY, WIDTH)
    for number, scale in ((0, 0.2), (2, 0.3)):
        draw(decoder, f"model.mm_projector.{number}.weight", scale, WIDTH, WIDTH)
        draw(decoder, f"model.mm_projector.{number}.bias", 0.3, WIDTH)

    at = "vision_model.embeddings."
    draw(tower, f"{at}class_embedding", 1.0, WIDTH)
    draw(tower, f"{at}patch_embedding.weight", 0.06, WIDTH, 3, PATCH, PATCH)
    draw(tower, f"{at}position_embedding.weight", 0.5, (SIDE // PATCH) ** 2 + 1, WIDTH)
    draw(tower, "vision_model.pre_layrnorm.weight", 0.1, WIDTH, offset=1)
    draw(tower, "vision_model.pre_layrnorm.bias", 0.1, WIDTH)
    for layer in range(TOWER_LAYERS):
        at = f"vision_model.encoder.layers.{layer}."
        for name, scale, bias in (("q", 0.2, 0.1), ("k", 0.2, 0.1), ("v", 0.12, 0.05), ("out", 0.08, 0.05)):
            draw(tower, f"{at}self_attn.{name}_proj.weight", scale, WIDTH, WIDTH)
            draw(tower, f"{at}self_attn.{name}_proj.bias", bias, WIDTH)
        for name, scale, rows, columns in (("fc1", 0.12, MLP, WIDTH), ("fc2", 0.05, WIDTH, MLP)):
            draw(tower, f"{at}mlp.{name}.weight", scale, rows, columns)
            draw(tower, f"{at}mlp.{name}.bias", 0.05, rows)
        for name in ("layer_norm1", "layer_norm2"):
            draw(tower, f"{at}{name}.weight", 0.1, WIDTH, offset=1)
            draw(tower, f"{at}{name}.bias", 0.1, WIDTH)
    draw(tower, "vision_model.post_layernorm.weight", 0.1, WIDTH, offset=1)
    draw(tower, "vision_model.post_layernorm.bias", 0.1, WIDTH)
    return decoder, tower


def make_images(count: int) -> torch.Tensor:
    """Pixels [count, 3, 336, 336]: coarse and fine noise of its own in each image."""
    random = np.random.RandomState(11)
    coarse, fine = (
        random.standard_normal((count, 3, cells, cells)).repeat(SIDE // cells, 2).repeat(SIDE // cells, 3)
        for cells in (8, 48)
    )
    return torch.from_numpy((coarse + 0.5 * fine).astype(np.float32))


def make_prompts(count: int, seed: int = 13, images: int = 1) -> list[torch.Tensor]:
    """Token ids: 35 before the first image, five between images, some after."""
    random, made = np.random.RandomState(seed), []
    for number in range(count):
        ids = [1, *random.randint(3, VOCABULARY, PREFIX - 1), IMAGE_TOKEN_INDEX]
        for _ in range(images - 1):
            ids += [*random.randint(3, VOCABULARY, 5), IMAGE_TOKEN_INDEX]
        made.append(torch.tensor([*map(int, ids), *map(int, random.randint(3, VOCABULARY, 12 + 5 * number))]))
    return made


def choice_vectors() -> dict[tuple[str, int], np.ndarray]:
    """Vectors [96, 24] that the published selection of DivPrune was run on, by kind and number."""
    random, made = np.random.RandomState(5), {}
    for kind in ("plain", "clustered", "duplicates"):
        for number in range(6):
            vectors = random.standard_normal((96, 24)).astype(np.float32)
            if kind == "clustered":
                vectors = np.repeat(random.standard_normal((8, 24)), 12, 0).astype(np.float32) + 0.05 * vectors
            if kind == "duplicates":
                vectors[48:] = vectors[:48]
            made[kind, number] = vectors.astype(np.float32)
    return made
