"""ViP-LLaVA: LLaVA-1.5 that reads features of five CLIP layers side by side (arXiv 2312.00784)."""

from .placeholders import Placeholders


class VipLlava(Placeholders):
    """`llava-hf/vip-llava-*-hf`, a Llama decoder. No single encoder layer is projected, so none is declared."""

    model_types = {"vipllava": "VipLlavaForConditionalGeneration"}
    token_grid = "square"
