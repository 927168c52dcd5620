"""The constants of LLaVA's interface: token indices and the special tokens of its prompts.

Source: haotian-liu/LLaVA, `llava/constants.py` (names and values).
"""

IGNORE_INDEX = -100
"""Label of a position that takes no part in a loss."""

IMAGE_TOKEN_INDEX = -200
"""Stands for one image in `input_ids`; replaced by the image's visual tokens before the decoder."""

DEFAULT_IMAGE_TOKEN = "<image>"
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
