"""The video reader of all commands: frames of any file that PyAV (FFmpeg) opens, as a viewer shows them.

Frames are chosen before any is decoded, by the rule of --frames and --fps (`chosen`), from the time stamps of the
file's packets; only they and what their compression needs before them is decoded. The same file and rule give the same
frames. Rotation is applied; sound is not read.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava.cli import VideoOptions
from llava.model.images import LIMITS as IMAGE_LIMITS
from llava.model.images import Limits

LIMITS = Limits(megabytes=8000.0, megapixels=100.0)
"""Bytes of a file, and pixels of all frames of a prompt together: 300 MB. Larger frames are made smaller."""
FRAMES, FRAMES_AT_FPS = 32, 768
"""Frames without any option; most frames with --fps alone."""


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a video, RGB uint8 [n, H, W, 3], and where they come from.

    indices: their numbers in the file, from 0; of `total`; fps: frames of the file per second, on average.
    """

    frames: np.ndarray
    indices: tuple[int, ...]
    total: int
    fps: float

    @property
    def times(self) -> tuple[float, ...]:
        """Seconds from the beginning of the video at which the frames are shown."""
        return tuple(index / self.fps for index in self.indices)


def chosen(total: int, seconds: float, rule: VideoOptions) -> list[int]:
    """Return which of `total` frames to show, in order: the first, the last, and others at even distances.

    As many as --frames says (32), or with --fps as many as the duration gives, at most --frames (768); never more than
    there are.
    """
    if rule.fps is None:
        count = FRAMES if rule.frames is None else rule.frames
    else:
        count = min(max(1, round(seconds * rule.fps)), FRAMES_AT_FPS if rule.frames is None else rule.frames)
    return np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()


def rule_of(options: VideoOptions) -> dict[str, Any]:
    """Return what the frames depend on beside the file, JSON-ready, as run files record it."""
    frames = options.frames or (FRAMES if options.fps is None else FRAMES_AT_FPS)
    return {"frames": frames, "fps": options.fps, "decoder": "PyAV"}


def read_video(path: str | Path | bytes, rule: VideoOptions | None = None, limits: Limits = LIMITS) -> Video:
    """Read the frames of a video that `rule` chooses (default: 32 of them), from a path or a file's bytes.

    Bytes may come from anyone: only containers that name no other file are taken (MP4, Matroska or WebM, AVI).

    Raises:
        ValueError: no such file, not a video, empty, damaged, or above a limit; one line that names the file. Also
            where PyAV is not installed.

    """
    name = "in memory" if isinstance(path, bytes) else str(path)
    with _open(path, limits) as (container, stream):
        stamps, keys = _stamps(container, stream)
    total = len(stamps)
    if not total:
        raise ValueError(f"video {name!r} has no frames")
    if total < stream.frames:
        raise ValueError(f"video {name!r} is damaged: it ends after {total} of {stream.frames} frames")
    shown = float((stamps[-1] - stamps[0]) * stream.time_base) if keys else 0.0  # from the first frame to the last
    fps = (total - 1) / shown if shown > 0 else float(stream.average_rate or 1)
    indices = chosen(total, total / fps, rule or VideoOptions())
    wanted = [stamps[index] for index in indices]
    scale = (limits.megapixels * 1e6 / (len(indices) * stream.width * stream.height)) ** 0.5
    size = None if scale >= 1 else (max(1, int(stream.width * scale)), max(1, int(stream.height * scale)))
    with _open(path, limits) as (container, stream):
        frames = _seeking(container, stream, wanted, keys, size)
    if frames is None:  # seeking does not reach all of them: some containers cannot
        with _open(path, limits) as (container, stream):
            frames = _in_order(container, stream, wanted, size)
    if len(frames) < len(wanted):
        raise ValueError(f"video {name!r} is damaged: frame {indices[len(frames)]} of {total} cannot be decoded")
    return Video(np.stack(frames), tuple(indices), total, fps)


def check_video(path: str | Path, limits: Limits = LIMITS) -> None:
    """Check that a file is a video whose first frame can be decoded; raises `ValueError` as `read_video` does."""
    with _open(path, limits) as (container, stream):
        if next(container.decode(stream), None) is None:
            raise ValueError(f"video {str(path)!r} has no frames")


def _format_of(content: bytes) -> str:
    """Return FFmpeg's name of a container that names no other file (as playlists do); `ValueError` for any other."""
    for name, place, mark in (("mov", 4, b"ftyp"), ("matroska", 0, b"\x1a\x45\xdf\xa3"), ("avi", 8, b"AVI ")):
        if content[place : place + len(mark)] == mark:
            return name
    raise ValueError("the video in memory is no MP4, Matroska, WebM or AVI file")


@contextmanager
def _open(path: str | Path | bytes, limits: Limits) -> Iterator[tuple[Any, Any]]:
    """Open a video file; yield the container and its stream, and say FFmpeg's errors inside in one line."""
    try:
        import av
    except ModuleNotFoundError:
        raise ValueError("reading videos needs PyAV: pip install 'llava[video]'") from None
    if isinstance(path, bytes):
        name, size, file, settings = "in memory", len(path), io.BytesIO(path), {"format": _format_of(path)}
    else:
        name, found, settings = str(path), Path(os.path.expanduser(path)), {}
        if not found.is_file():
            raise ValueError(f"video {name!r}: " + ("not a file" if found.exists() else "no such file"))
        file, size = str(found), found.stat().st_size
    if size == 0:
        raise ValueError(f"video {name!r} is empty")
    if size > limits.bytes:
        raise ValueError(f"video {name!r} is larger than the limit of {limits.megabytes:g} MB")
    try:
        with av.open(file, **settings) as container:
            if not container.streams.video:
                raise ValueError(f"{name!r} holds no video")
            stream = container.streams.video[0]
            if not stream.width or not stream.height:
                raise ValueError(f"{name!r} holds a video of a format that cannot be decoded")
            if stream.width * stream.height > IMAGE_LIMITS.megapixels * 1e6:
                size = f"{stream.width}×{stream.height} pixels, the limit is {IMAGE_LIMITS.megapixels:g} megapixels"
                raise ValueError(f"video {name!r} has frames of {size}")
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"video {name!r} cannot be read: {' '.join(reason.split())}") from None


def _stamps(container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """Return the time stamps of all frames, and of those that can be decoded alone, in order; nothing is decoded."""
    packets = [packet for packet in container.demux(stream) if packet.size]
    if any(packet.pts is None for packet in packets):  # only decoding order is known
        return list(range(len(packets))), []
    return sorted(packet.pts for packet in packets), sorted(packet.pts for packet in packets if packet.is_keyframe)


def _seeking(
    container: Any, stream: Any, wanted: Sequence[int], keys: Sequence[int], size: tuple[int, int] | None
) -> list[np.ndarray] | None:
    """Decode the frames at `wanted` stamps, each from the key frame before it; None where one is not found there."""
    found: list[np.ndarray] = []
    decoded, last = None, None
    for stamp in wanted:
        place = bisect_right(keys, stamp)
        if place == 0:
            return None
        if decoded is None or last < keys[place - 1]:  # else the decoder is between this key frame and the stamp
            container.seek(keys[place - 1], stream=stream)
            decoded = container.decode(stream)
        frame = next((frame for frame in decoded if frame.pts is None or frame.pts >= stamp), None)
        if frame is None or frame.pts != stamp:
            return None
        last = stamp
        found.append(_pixels(frame, size))
    return found


def _in_order(container: Any, stream: Any, wanted: Sequence[int], size: tuple[int, int] | None) -> list[np.ndarray]:
    """Decode from the beginning; take for every stamp the first frame that does not come before it."""
    found: list[np.ndarray] = []
    for number, frame in enumerate(container.decode(stream)):
        here = number if frame.pts is None else frame.pts
        if len(found) < len(wanted) and here >= wanted[len(found)]:
            found.append(_pixels(frame, size))
        if len(found) == len(wanted):
            break
    return found


def _pixels(frame: Any, size: tuple[int, int] | None) -> np.ndarray:
    """Return a frame as RGB uint8 [H, W, 3], upright, `size` (width, height) or its own."""
    scaled = {} if size is None else {"width": size[0], "height": size[1], "interpolation": "AREA"}
    pixels: np.ndarray = frame.reformat(format="rgb24", **scaled).to_ndarray()
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.rot90(pixels, turns) if turns else pixels
