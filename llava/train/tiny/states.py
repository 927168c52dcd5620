"""The trained parameters under transformers' names."""

import torch

from llava.train.tiny.modules import TinyLlava

State = dict[str, torch.Tensor]


def export_states(model: TinyLlava) -> tuple[State, State, State]:
    """Return the state dicts of CLIPVisionModel, the projector and LlamaForCausalLM, float32 on the CPU.

    CLIP gets one layer more than was trained, which adds nothing: LLaVA's select layer -2 then reads the last trained.
    """
    tower, a = model.tower, model.architecture
    vision = {
        "embeddings.class_embedding": tower.class_embedding,
        "embeddings.patch_embedding.weight": tower.patch_embedding.weight.view(-1, 3, a.patch_size, a.patch_size),
        "embeddings.position_embedding.weight": tower.position_embedding,
        "pre_layrnorm.weight": tower.pre_layrnorm.weight,
        "pre_layrnorm.bias": tower.pre_layrnorm.bias,
        "post_layernorm.weight": torch.ones_like(tower.pre_layrnorm.weight),
        "post_layernorm.bias": torch.zeros_like(tower.pre_layrnorm.bias),
    }
    for i, layer in enumerate([*tower.layers, tower.layers[-1]]):
        adds = i < len(tower.layers)
        base = f"encoder.layers.{i}."
        for p in ("weight", "bias"):
            for name, part in zip("qkv", getattr(layer.qkv, p).chunk(3), strict=True):
                vision[f"{base}self_attn.{name}_proj.{p}"] = part
            vision[f"{base}self_attn.out_proj.{p}"] = getattr(layer.out_proj, p) * adds
            vision[f"{base}mlp.fc1.{p}"] = getattr(layer.fc1, p)
            vision[f"{base}mlp.fc2.{p}"] = getattr(layer.fc2, p) * adds
            for norm in ("layer_norm1", "layer_norm2"):
                vision[f"{base}{norm}.{p}"] = getattr(getattr(layer, norm), p)
    language = {
        "model.embed_tokens.weight": model.embed.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for i, layer in enumerate(model.layers):
        base = f"model.layers.{i}."
        for name, part in zip("qkv", layer.qkv.weight.chunk(3), strict=True):
            language[f"{base}self_attn.{name}_proj.weight"] = part
        for name, part in zip(("gate", "up"), layer.gate_up.weight.chunk(2), strict=True):
            language[f"{base}mlp.{name}_proj.weight"] = part
        language[f"{base}self_attn.o_proj.weight"] = layer.o_proj.weight
        language[f"{base}mlp.down_proj.weight"] = layer.down_proj.weight
        for norm in ("input_layernorm", "post_attention_layernorm"):
            language[f"{base}{norm}.weight"] = getattr(layer, norm).weight
    states = (vision, model.projector.state_dict(), language)
    return tuple({name: t.detach().float().cpu().contiguous() for name, t in state.items()} for state in states)
