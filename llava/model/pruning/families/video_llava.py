"""Video-LLaVA: 256 tokens per image, 257 per frame with its class token (arXiv 2311.10122)."""

from .placeholders import Placeholders


class VideoLlava(Placeholders):
    """`LanguageBind/Video-LLaVA-7B-hf`, a Llama decoder; images and videos have towers of their own."""

    model_types = {"video_llava": "VideoLlavaForConditionalGeneration"}
