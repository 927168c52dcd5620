"""InternVL's original weights by name, and what transformers' `InternVLForConditionalGeneration` takes from each.

There the vision tower's queries, keys and values are one `attn.qkv`, and InternLM2's one `attention.wqkv`, in which
each key-value head follows its query heads: rows `[kv_heads, query heads of the group + k + v, head_dim]`.
Names: internvl_chat/internvl/model of the published code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from transformers import InternVLConfig

_VISION = {
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "encoder.layer.": "encoder.layers.",
    "attention.projection_layer": "attn.proj",
    "attention.": "attn.",
    "lambda_": "ls",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
}
_PROJECTOR = {"layer_norm": "0", "linear_1": "1", "linear_2": "3"}
_INTERNLM2 = {
    "embed_tokens": "tok_embeddings",
    "self_attn.o_proj": "attention.wo",
    "self_attn.": "attention.",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attention_norm",
}
_FUSED = re.compile(r"(?<=\.)([qkv])_proj(?=\.)")
INTERNLM2_HEAD = "language_model.output.weight"
HEAD = "language_model.lm_head.weight"


def original_name(name: str, internlm2: bool) -> tuple[str, str]:
    """Return the original name of one of transformers' weights, and which part of it this is: "q", "k", "v" or "".

    "" is all of it. `internlm2`: whether the decoder is InternLM2; Llama and Qwen2 keep transformers' names.
    """
    parts = (
        ("model.vision_tower.", "vision_model.", _VISION, "qkv"),
        ("model.multi_modal_projector.", "mlp1.", _PROJECTOR, None),
        (
            "model.language_model.",
            "language_model.model.",
            _INTERNLM2 if internlm2 else {},
            "wqkv" if internlm2 else None,
        ),
        ("lm_head.weight", INTERNLM2_HEAD if internlm2 else HEAD, {}, None),
    )
    prefix, original, renamed, fused = next(part for part in parts if name.startswith(part[0]))
    rest = name.removeprefix(prefix)
    for ours, theirs in renamed.items():
        rest = rest.replace(ours, theirs)
    found = _FUSED.search(rest) if fused else None
    return original + (_FUSED.sub(fused, rest) if found else rest), found[1] if found else ""


def original_layout(expected: Mapping[str, torch.Tensor], internlm2: bool) -> dict[str, torch.Tensor]:
    """Return the names and shapes (tensors on meta) of the original weights of a model with the weights `expected`."""
    rows: dict[str, int] = {}
    layout = {}
    for name, tensor in expected.items():
        original, part = original_name(name, internlm2)
        rows[original] = rows.get(original, 0) + tensor.shape[0]
        layout[original] = torch.empty((rows[original], *tensor.shape[1:]) if part else tensor.shape, device="meta")
    return layout


def convert(
    weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], config: InternVLConfig, internlm2: bool
) -> dict[str, torch.Tensor]:
    """Return the weights under the names of `expected`; both have been checked to hold the same ones.

    What needs no reordering stays the tensor it is (mapped to its file): only InternLM2's queries, keys and values,
    about a tenth of a 7B decoder, are copied.
    """
    converted = {}
    for name in expected:
        original, part = original_name(name, internlm2)
        tensor = weights[original]
        if part and original.startswith("vision_model."):
            tensor = tensor.chunk(3)["qkv".index(part)]
        elif part:
            tensor = _take_heads(tensor, part, config)
        converted[name] = tensor
    return converted


def _take_heads(fused: torch.Tensor, part: str, config: InternVLConfig) -> torch.Tensor:
    """Take queries, keys or values out of `wqkv` (`[rows, D]`, or its bias `[rows]`), heads in order."""
    text = config.text_config
    groups = fused.unflatten(0, (text.num_key_value_heads, -1, text.hidden_size // text.num_attention_heads))
    if part == "q":
        return groups[:, :-2].flatten(0, 2)
    return groups[:, -2 if part == "k" else -1].flatten(0, 1)
