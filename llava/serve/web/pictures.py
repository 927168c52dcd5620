"""Images of requests: decoded in memory within limits, and kept, bounded, so that none is read twice."""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import torch
from PIL import Image

from llava.cli import VideoOptions
from llava.model.images import Limits, read_image
from llava.model.inputs import ImageFeatures, Inputs, ProcessedImage
from llava.model.videos import read_video
from llava.serve.images import download, is_public

STORE_BYTES = 1 << 27


@dataclass(eq=False)
class Picture:
    """An image or video of a request: `key` is the hash of its file; `features` is None until the model has seen it.

    `shown`: the image, or the frames of the video.
    """

    key: str
    shown: tuple[Image.Image, ...]
    processed: ProcessedImage
    features: ImageFeatures | None = None
    is_video: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of pixels, arrays and features."""
        width, height = self.shown[0].size
        return 3 * len(self.shown) * width * height + _nbytes(self.processed) + _nbytes(self.features)


def _nbytes(value: Any) -> int:
    """Bytes of the arrays and tensors inside nested dataclasses, tuples, lists and dicts."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return int(value.nbytes)
    if isinstance(value, dict):
        return sum(map(_nbytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(_nbytes(one) for one in value if not isinstance(one, int))
    return _nbytes(vars(value)) if hasattr(value, "__dict__") else 0


class PictureStore:
    """The images that requests showed, by the hash of their files; the least recently used leave first.

    A picture that a waiting request holds is not freed by that, so that a request never misses its own image.
    """

    def __init__(
        self,
        inputs: Inputs,
        limits: Limits,
        max_bytes: int = STORE_BYTES,
        urls: bool = False,
        frames: VideoOptions | None = None,
    ):
        self.inputs, self.limits, self.max_bytes, self.urls, self.frames = inputs, limits, max_bytes, urls, frames
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, url: str, is_video: bool = False) -> Picture:
        """Return the image or video of a `data:` URL or, where the store takes them, of an http(s) URL.

        Raises:
            ValueError: another kind of URL, no image, above a limit, an address that is not public; one line.

        """
        if url[:5].lower() == "data:":
            data = _data_of(url, self.limits)
        elif url[:8].lower().startswith(("http://", "https://")):
            if not self.urls:
                raise ValueError("image URLs are not fetched here (--image-urls allows it): send a data: URL")
            data = download(url, self.limits, is_public)
        else:
            raise ValueError(f"an image is a data: or http(s) URL, got {url[:32]!r}")
        return self.add(data, is_video)

    def add(self, data: bytes, is_video: bool = False) -> Picture:
        """Return the picture of a file's bytes; raises `ValueError` as `read_image` and `read_video` do."""
        key = hashlib.sha256(data).hexdigest() + ("v" if is_video else "")
        with self._lock:  # one at a time: decoding is bounded by the limits, and processors are not made for threads
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
            if is_video:
                read = read_video(data, self.frames, self.limits)
                shown = tuple(map(Image.fromarray, read.frames))
            else:
                read = read_image(data, self.limits, name="of the request")
                shown = (read,)
            try:
                processed = self.inputs.prepare(read)
            except Exception as error:  # processors raise nearly anything on odd images
                raise ValueError(f"this model cannot take the {'video' if is_video else 'image'}: {error}") from error
            picture = self._pictures[key] = Picture(key, shown, processed, is_video=is_video)
            self._evict()
        return picture

    def account(self) -> None:
        """Count features that were added, and evict."""
        with self._lock:
            self._evict()

    def _evict(self) -> None:
        self.nbytes = sum(one.nbytes for one in self._pictures.values())
        while self.nbytes > self.max_bytes and len(self._pictures) > 1:
            _, oldest = self._pictures.popitem(last=False)
            self.nbytes -= oldest.nbytes


def _data_of(url: str, limits: Limits) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise ValueError("a data: URL is data:image/png;base64,… (no comma found)")
    limits.check_size("of the request", len(body) * 3 // 4 - 2)
    if not head.lower().rstrip().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the data: URL of an image is not valid base64") from None
