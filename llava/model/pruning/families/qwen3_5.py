"""Qwen3.5 and its mixture of experts: three of four layers are gated delta rules, the fourth attends; M-RoPE."""

from .qwen2_vl import Qwen2VL


class Qwen35(Qwen2VL):
    """Early fusion without DeepStack: `layer_types` of the config says which layers attend."""

    model_types = {"qwen3_5": "Qwen3_5ForConditionalGeneration", "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration"}
