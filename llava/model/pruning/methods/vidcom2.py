"""VidCom2 (arXiv 2505.14454): before the decoder, more tokens of frames that stand out, and of each the odd ones.

Of the embeddings of a video, the half of the channels with the lowest variance is taken and normalised. A token's
likeness to a centre c is Σ exp(−‖x − c‖² / 2α) over α = 1/8, 1/4, 1/2, 1, 2. A frame keeps the share
s (1 + p − mean p) of its tokens, at least one, where p is the softmax over frames of the mean unlikeness to the video's
centre, at temperature 0.01; those tokens stay that are least like the video's and their frame's centre (the sum of
both). The question plays no part. An image is a video of one frame: its share is s.

The original code (xuyang-liu16/VidCom2) leaves images whole, computes in the model's precision (here fp32), and runs at
batch 1. The paper ranks by cosine similarity; channels and kernels are the code's. On LLaVA-OneVision it renumbers the
remaining tokens' positions from 0, on Qwen's models they stay, as here on all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..method import Count, PromptState, Share, strongest
from ..probes import LayerStates, Probe
from .frames import Clip, clips_of, share_of
from .ranking import BeforeDecoder

WIDTHS = tuple(2.0**k for k in range(-3, 2))
TEMPERATURE = 0.01


@dataclass(frozen=True)
class VidCom2(BeforeDecoder, name="vidcom2"):
    """Keep the visual tokens that are least like their video and their frame, before the decoder.

    keep, share:
        visual tokens that stay, as a number or as a share of each video's, about: frames round by themselves
    """

    keep: Count | None = None
    share: Share | None = None

    reads_frames = True

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        return Likeness(clips_of(prompt)) if layer < 0 else None

    def select(self, layer: int, prompt: PromptState, measured: np.ndarray | None) -> np.ndarray | None:
        if measured is None:
            return None
        kept, share = np.ones(measured.shape[1], bool), share_of(self, prompt)
        for clip in clips_of(prompt):
            shares = frame_shares(np.array([measured[0, frame].mean() for frame in clip]), share)
            for frame, part in zip(clip, shares, strict=True):
                count = max(1, round(part * (frame.stop - frame.start)))
                kept[frame] = strongest(-measured.sum(0)[frame], count)
        return kept


def frame_shares(likeness: np.ndarray, share: float) -> list[float]:
    """Return the share of its tokens that each frame keeps; likeness [T]: a frame's mean, to the video's centre."""
    weights = np.exp((likeness.min() - likeness) / TEMPERATURE)
    weights /= weights.sum()
    return np.minimum(share * (1 + weights - weights.mean()), 1).tolist()


@dataclass(frozen=True, eq=False)
class Likeness(Probe):
    """Likeness of visual tokens to their video's centre and to their frame's, fp32 [2, V]; 0 for tokens of no frame."""

    clips: list[Clip]

    def measure(self, states: LayerStates, prompts: tuple[int, ...]) -> list[torch.Tensor]:
        """Return [2, V] of the prompt."""
        (hidden,) = (states.tokens.visual_hidden(b).float() for b in prompts)
        scores = torch.zeros(2, len(hidden), device=hidden.device)
        for clip in self.clips:
            tokens = slice(clip[0].start, clip[-1].stop)
            variance = hidden[tokens].var(0, unbiased=False)
            lowest = variance.topk(hidden.shape[-1] // 2, largest=False).indices
            video = torch.nn.functional.normalize(hidden[tokens][:, lowest], dim=-1)
            scores[0, tokens] = _likeness(video, video.mean(0))
            for frame in clip:
                own = video[frame.start - tokens.start : frame.stop - tokens.start]
                scores[1, frame] = _likeness(own, own.mean(0))
        return [scores]


def _likeness(vectors: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Return the sum of the kernels of each vector [n, D] at a centre [D]."""
    distance = (vectors - centre).square().sum(-1)
    return sum(torch.exp(-distance / (2 * width)) for width in WIDTHS)
