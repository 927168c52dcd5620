"""DeepSeek-VL: 576 tokens per image, from SigLIP (1.3B) or SigLIP and SAM side by side (7B) (arXiv 2403.05525)."""

from .placeholders import Placeholders


class DeepseekVL(Placeholders):
    """`deepseek-community/deepseek-vl-*`, a Llama decoder; every placeholder of an image is visual."""

    model_types = {
        "deepseek_vl": "DeepseekVLForConditionalGeneration",
        "deepseek_vl_hybrid": "DeepseekVLHybridForConditionalGeneration",
    }
