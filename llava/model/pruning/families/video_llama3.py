"""VideoLLaMA3: images and frames of any size; tokens of frames that hardly change are left out (arXiv 2501.13106)."""

from .placeholders import Placeholders


class VideoLlama3(Placeholders):
    """`lkhl/VideoLLaMA3-*-HF`, a Qwen2 decoder; time stamps and commas between frames are text.

    The frames' unchanged tokens never reach the prompt (`video_compression_mask`); pruning counts what is left.
    """

    model_types = {"video_llama_3": "VideoLlama3ForConditionalGeneration"}
    token_grid = "grid"
