"""transformers' video processors where torchvision is not installed: the same classes, on torch's own operations.

Their arithmetic is four operations of a tensor (resize, crop, normalise, grey to RGB), which torchvision would bring;
what frames become, how they are cut into patches and counted, stays the library's.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoVideoProcessor
from transformers.image_utils import SizeDict
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor

SHARED = {"qwen2_5_vl": "qwen2_vl", "qwen3_vl_moe": "qwen3_vl", "qwen3_5": "qwen3_vl", "qwen3_5_moe": "qwen3_vl"}
"""Model types that use the video processor of another one's module."""
MODES = {one: one.name.lower() for one in Image.Resampling if one.name in ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS")}
"""PIL's filters, and torch's names of them."""


def load_video_processor(folder: Path, model_type: str) -> BaseVideoProcessor:
    """Load a checkpoint's video processor, its settings from the files that transformers reads them from.

    Raises:
        OSError, ValueError, ImportError, AttributeError: files or a class that are not there.

    """
    if is_torchvision_available():
        processor = AutoVideoProcessor.from_pretrained(folder)
    else:
        processor = on_torch(_class_of(SHARED.get(model_type, model_type))).from_pretrained(folder)
    if getattr(processor, "cap_pixels_per_frame", True) is None:
        processor.cap_pixels_per_frame = True  # as Qwen's own code: a long video's frames share a bound
    return processor


def on_torch(kind: type[BaseVideoProcessor]) -> type[BaseVideoProcessor]:
    """Return a video processor class whose tensor operations are torch's."""
    return type(kind.__name__, (kind, _TorchOperations), {"__reduce__": lambda self: (_restored, (kind, vars(self)))})


def _restored(kind: type[BaseVideoProcessor], state: dict[str, Any]) -> BaseVideoProcessor:
    """Make a pickled processor again; worker processes get one."""
    processor = object.__new__(on_torch(kind))
    vars(processor).update(state)
    return processor


def _class_of(model_type: str) -> type[BaseVideoProcessor]:
    name = model_type_to_module_name(model_type)
    with _importable("torchvision.transforms.v2.functional"):
        module = importlib.import_module(f"transformers.models.{name}.video_processing_{name}")
    return next(
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, BaseVideoProcessor) and one.__module__ == module.__name__
    )


@contextmanager
def _importable(name: str) -> Iterator[None]:
    """Inside, an empty module of this name can be imported: some of the classes import it and never call it."""
    parts = name.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    for whole in names:
        sys.modules[whole] = ModuleType(whole)
    for outer, inner in zip(names, names[1:], strict=False):
        setattr(sys.modules[outer], inner.rpartition(".")[2], sys.modules[inner])
    try:
        yield
    finally:
        for whole in names:
            del sys.modules[whole]


class _TorchOperations(BaseVideoProcessor):
    """What `TorchvisionBackend` leaves to torchvision, with the same numbers. Videos are [..., C, H, W]."""

    def resize(
        self, image: torch.Tensor, size: SizeDict, resample: int | None = None, antialias: bool = True, **kwargs: Any
    ) -> torch.Tensor:
        """Resize to `height` × `width`, or so that the shorter side is `shortest_edge`."""
        height, width = image.shape[-2:]
        if size.height and size.width:
            new = (size.height, size.width)
        elif size.shortest_edge and not size.longest_edge:
            short, long = sorted((height, width))
            other = int(size.shortest_edge * long / short)
            new = (size.shortest_edge, other) if height <= width else (other, size.shortest_edge)
        else:
            raise ValueError(f"a video processor's size should have height and width, or shortest_edge; it has {size}")
        mode = MODES.get(Image.Resampling.BILINEAR if resample is None else resample)
        if mode is None:
            raise ValueError(f"videos are resized by {', '.join(MODES.values())}; this processor asks for {resample!r}")
        flat = image.reshape(-1, *image.shape[-3:])
        smooth = {} if mode == "nearest" else {"antialias": antialias, "align_corners": False}
        return F.interpolate(flat, new, mode=mode, **smooth).reshape(*image.shape[:-2], *new)

    def normalize(self, image: torch.Tensor, mean: Any, std: Any, **kwargs: Any) -> torch.Tensor:
        """Subtract the mean of each channel and divide by its standard deviation."""
        mean, std = (torch.as_tensor(one, dtype=image.dtype).view(-1, 1, 1) for one in (mean, std))
        return (image - mean) / std

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs: Any) -> torch.Tensor:
        """Cut out the middle, with black around it where the video is smaller."""
        height, width = image.shape[-2:]
        missing = [max(size.width - width, 0), max(size.height - height, 0)]
        image = F.pad(image, [part for n in missing for part in (n // 2, math.ceil(n / 2))])
        top, left = (image.shape[-2] - size.height) // 2, (image.shape[-1] - size.width) // 2
        return image[..., top : top + size.height, left : left + size.width]

    def convert_to_rgb(self, video: torch.Tensor) -> torch.Tensor:
        """Repeat the channel of a grey video."""
        return video.expand(*video.shape[:-3], 3, *video.shape[-2:]) if video.shape[-3] == 1 else video
