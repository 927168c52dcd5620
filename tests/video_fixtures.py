"""Short videos, written by PyAV: every frame has a grey of its own, by which it is told from the others."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def greys(frames: int, height: int = 24, width: int = 32) -> np.ndarray:
    """Frame i is the grey 2 i: uint8 [frames, height, width, 3]."""
    return np.repeat(2 * np.arange(frames, dtype=np.uint8), height * width * 3).reshape(frames, height, width, 3)


def write_video(path: Path, frames: np.ndarray, fps: int = 10, codec: str = "libx264", format: str = "yuv420p") -> Path:  # noqa: A002
    """Write uint8 [n, H, W, 3] with a key frame every 12 frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size = format, 12
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def moving_square(seed: int, frames: int = 6, height: int = 24, width: int = 32) -> np.ndarray:
    """A square of a random colour that crosses a random ground: uint8 [frames, height, width, 3]."""
    generator = np.random.default_rng(seed)
    ground, colour = generator.integers(0, 256, (2, 3), dtype=np.uint8)
    clip = np.tile(ground, (frames, height, width, 1))
    top, start = int(generator.integers(0, height - 8)), int(generator.integers(0, 8))
    for number in range(frames):
        left = (start + 4 * number) % (width - 8)
        clip[number, top : top + 8, left : left + 8] = colour
    return clip
