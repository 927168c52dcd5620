"""GLM-4.1V, GLM-4.6V and the mixtures of experts GLM-4.5V and GLM-4.6V: M-RoPE on half of each head, sandwich norms."""

from .qwen2_vl import Qwen2VL


class Glm4v(Qwen2VL):
    """Image placeholders are visual, in images and in the frames of a video; time stamps between frames are text."""

    model_types = {
        "glm4v": "Glm4vForConditionalGeneration",
        "glm46v": "Glm46VForConditionalGeneration",
        "glm4v_moe": "Glm4vMoeForConditionalGeneration",
    }
    placeholders = ("image_token_id",)
