"""A strip of a video's frames with the visual tokens that were kept."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from llava.model.pruning import PruningTrace
from llava.model.videos import Video

MOST = 32
"""Frames of a strip; of a longer video, so many at even distances."""


def plot_frames(video: Video, trace: PruningTrace, medium: int | None = None, layer: int | None = None) -> Figure:
    """Draw a video's frames in grey, and in colour the cells of the visual tokens that were kept.

    A token may show two frames (Qwen-VL): the picture is then the first of them.

    Args:
        video: as it was shown to the model.
        trace: of the prompt.
        medium: which image or video of the prompt it is, from 0; default: the first with several frames.
        layer: draw the tokens that enter this layer; default: what the last choice left.

    Raises:
        ValueError: no such video in the prompt, or one whose tokens have no known rows and columns.

    """
    several = [frame.medium for frame in trace.frames if frame.number > 0]
    if medium is None and several:
        medium = several[0]
    frames = [frame for frame in trace.frames if frame.medium == medium]
    if not frames or not all(frame.columns for frame in frames):
        raise ValueError("the trace holds no video whose frames have rows and columns: only such are drawn")
    left = trace.remaining(layer)
    kept = None if left is None else set(left)
    chosen = np.linspace(0, len(frames) - 1, min(MOST, len(frames))).round().astype(int)
    columns = min(8, len(chosen))
    figure = Figure(figsize=(1.6 * columns, 1.5 * -(-len(chosen) // columns)), layout="constrained")
    grid = figure.subplots(-(-len(chosen) // columns), columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, number in zip(grid, chosen, strict=False):
        frame = frames[number]
        picture = video.frames[number * len(video.frames) // len(frames)]
        height, width = picture.shape[:2]
        axes.imshow(picture.mean(-1), "gray", vmin=0, vmax=255)
        rows, places = frame.tokens // frame.columns, range(frame.start, frame.start + frame.tokens)
        stays = [place - frame.start for place in places if kept is None or place in kept]
        for row, column in (divmod(cell, frame.columns) for cell in stays):
            top, bottom = (np.array([row, row + 1]) * height / rows).round().astype(int)
            start, end = (np.array([column, column + 1]) * width / frame.columns).round().astype(int)
            extent = (start - 0.5, end - 0.5, bottom - 0.5, top - 0.5)
            axes.imshow(picture[top:bottom, start:end], extent=extent)
            corner = (start - 0.5, top - 0.5)
            axes.add_patch(Rectangle(corner, end - start, bottom - top, fill=False, edgecolor="gold", linewidth=0.6))
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        axes.set_title(f"{number}: {len(stays)} of {frame.tokens}", fontsize=8)
    return figure
