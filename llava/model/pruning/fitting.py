"""Fit FitPrune's numbers (arXiv 2409.10197) or VTW's layer (2405.05803) to a model, on prompts that need no answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .fields import Share, checked
from .method import Method, PromptState
from .methods import VTW
from .methods.fitprune import SCORES, FitPrune
from .probes import Attention, Probe
from .session import prune
from .trace import PruningTrace


@dataclass(frozen=True, eq=False)
class _Search(Method):
    """Drop, in every layer, the tokens that both attention distributions can miss; alpha None: only measure.

    The [text, visual] mass of every layer is left in `PromptState.memory["mass"]`, by layer.

    alpha:
        share of the dense mass that a layer may lose
    dense:
        the dense masses of every prompt, in the order the prompts are read
    """

    alpha: Share | None = None
    dense: Any = ()

    def probe(self, layer: int, prompt: PromptState) -> Probe | None:
        return SCORES if layer >= 0 else None

    def select(self, layer: int, prompt: PromptState, measured: Attention | None) -> np.ndarray | None:
        if measured is None:
            return None
        scores = (measured.text, measured.visual)
        prompt.memory.setdefault("mass", {})[layer] = [part.sum() for part in scores]
        if self.alpha is None:
            return None
        dense = self.dense[prompt.number][layer]
        spared = [spare(part, (1 - self.alpha) * mass) for part, mass in zip(scores, dense, strict=True)]
        return ~(spared[0] & spared[1])


def spare(scores: np.ndarray, least: float) -> np.ndarray:
    """Return bool [V]: the lowest scores that can go while the others' sum stays at or above `least`."""
    order = np.argsort(scores, kind="stable")
    left = scores.sum(dtype=np.float64) - np.cumsum(scores[order], dtype=np.float64)
    chosen = np.zeros(len(scores), bool)
    chosen[order[: int((left >= least).sum())]] = True
    return chosen


@torch.no_grad()
def fit(
    model: torch.nn.Module,
    read: Callable[[], Any],
    reduction: float,
    *,
    visual_mask: torch.Tensor | None = None,
    precision: float = 0.01,
) -> FitPrune:
    """Return the FitPrune config that saves the share `reduction` of the visual tokens' FLOPs of the prompts.

    read:
        has the model read all calibration prompts (`model(**inputs)` or `generate`), the same ones in every call
    reduction:
        wanted saving in (0, 1), by the field's FLOPs (`trace.flops()`)
    visual_mask:
        for a bare decoder, as `prune` takes it
    precision:
        bisection ends when α is known to this width

    Reads the prompts about ⌈log2(1 / precision)⌉ + 1 times.

    Raises:
        ValueError: a reduction outside (0, 1), or prompts without visual tokens.

    """
    checked("reduction", reduction, Share)
    if not 0 < reduction < 1:
        raise ValueError(f"'reduction' must lie between 0 and 1, got {reduction}")

    def run(**settings) -> tuple[list[PruningTrace], list[dict]]:
        with prune(model, _Search(**settings), visual_mask) as session:
            read()
        shown = [trace for trace in session.traces if trace.visual_tokens]
        return shown, [prompt.memory.get("mass") for prompt in session.policies]

    traces, dense = run()
    if not traces:
        raise ValueError("none of the calibration prompts has visual tokens; give prompts with images")
    low, high, found = 0.0, 1.0, None
    with tqdm(desc="fitting", unit="pass") as progress:
        while high - low > precision or found is None:
            alpha = (low + high) / 2 if high - low > precision else 1.0
            keep = _reached(run(alpha=alpha, dense=dense)[0], reduction)
            low, high, found = (alpha, high, found) if keep is None else (low, alpha, keep)
            progress.update()
            if keep is None and alpha == 1.0:
                raise ValueError(f"no numbers of tokens save {reduction:.0%} on these prompts; ask for less")
    return found


def _reached(traces: list[PruningTrace], reduction: float) -> FitPrune | None:
    """Return the numbers of these traces, dropping no more once the saving is reached; None if it is not."""
    shape, visual_tokens = traces[0].shape, traces[0].visual_tokens
    entering = np.array([np.array([*trace.visual_per_layer[1:], trace.visual_per_layer[-1]]) for trace in traces])
    shares = (entering / np.array([[trace.visual_tokens] for trace in traces])).mean(0)
    keep = np.ceil(shares * visual_tokens - 1e-9).astype(int).tolist()
    dense = shape.layers * shape.layer_flops(visual_tokens)
    for last in range(shape.layers - 1):
        plan = keep[: last + 1] + [keep[last]] * (shape.layers - last - 1)
        flops = sum(shape.layer_flops(count) for count in [visual_tokens, *plan[:-1]])
        if flops <= (1 - reduction) * dense:
            return FitPrune(keep=plan, visual_tokens=visual_tokens)
    return None


FIRST_EXIT = 5
"""The first layer that VTW's published search tries."""


@torch.no_grad()
def next_token_kl(model: torch.nn.Module, read: Callable[[], torch.Tensor], layers: Sequence[int]) -> np.ndarray:
    """Return KL(pruned ‖ dense) of the next token where all visual tokens leave before layer k: fp32 [layers, prompts].

    read: has the model read all prompts and returns the logits of their last tokens [prompts, vocabulary]
    """

    def distribution() -> torch.Tensor:
        return read().float().log_softmax(-1)

    dense, found = distribution(), []
    for k in tqdm(layers, desc="layers"):
        with prune(model, VTW(k=k)):
            pruned = distribution()
        found.append((pruned.exp() * (pruned - dense)).sum(-1).cpu().numpy())
    return np.array(found)


def first_exit(kl: np.ndarray, layers: Sequence[int], most: float) -> VTW:
    """Return VTW at the first of `layers` whose mean KL (see `next_token_kl`) is at most `most`.

    As the original code searches (`--findk`), which takes 0.003 for LLaVA-1.5-7B, 0.0005 for the 13B and 0.0001 for
    LLaVA-NeXT-7B.

    Raises:
        ValueError: no layer is that close to dense.

    """
    means = kl.mean(1)
    close = np.flatnonzero(means <= most)
    if not len(close):
        raise ValueError(f"no layer's mean KL to dense is at most {most:g}; the smallest is {means.min():.2g}")
    return VTW(k=int(layers[close[0]]))
