"""`watch`: read prompts through the pruning engine and measure something at every layer, with or without pruning.

What an analysis measures is a `Probe`, as a method's policy has it: computed on the device from the query, key and
value states of one layer, fetched once. So it works in every family that can be pruned, sees what a pruned layer ran
with, and is undone with the session. Without a config nothing is pruned and every layer attends to everything.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llava.model.pruning import PruningConfig, PruningTrace, prune
from llava.model.pruning.methods import NoPruning
from llava.model.pruning.probes import Probe
from llava.model.pruning.record import Several, recorder

__all__ = ["Several", "Watched", "read", "watch"]


@dataclass(frozen=True, eq=False)
class Watched:
    """What was measured of one prompt.

    visual:
        int [V], positions of its visual tokens as they entered the decoder
    measured:
        the probe's result at every layer that had visual tokens, by layer
    present:
        int [V_l], positions of the visual tokens that each of these layers ran with
    trace:
        what the engine did with the prompt
    """

    visual: np.ndarray
    measured: Mapping[int, Any]
    present: Mapping[int, np.ndarray]
    trace: PruningTrace


def watch(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    probe: Probe,
    config: PruningConfig | Mapping[str, Any] | str | None = None,
    visual_mask: torch.Tensor | None = None,
) -> list[Watched]:
    """Read a batch of prompts once and run `probe` after every layer; one result a prompt.

    inputs:
        keywords of the model's `generate` (`Inputs.collate`) or `forward`
    config:
        prune on the way; None: do not
    visual_mask:
        for a bare decoder, as `prune` takes it

    Raises:
        ValueError: what `prune` refuses, and a prompt without visual tokens, of which nothing can be measured.

    """
    base = NoPruning() if config is None else PruningConfig.of(config)
    with prune(model, recorder(probe, base), visual_mask) as session:
        read(model, inputs)
    empty = [number for number, trace in enumerate(session.traces) if not trace.visual_tokens]
    if empty:
        raise ValueError(f"prompt {empty[0]} of the batch has no visual tokens: give it an image, or leave it out")
    recorded = [prompt.memory["recorded"] for prompt in session.policies]
    return [
        Watched(prompt.visual, prompt.measured, prompt.present, trace)
        for prompt, trace in zip(recorded, session.traces, strict=True)
    ]


@torch.no_grad()
def read(model: torch.nn.Module, inputs: Mapping[str, Any]) -> None:
    """Run one forward over the prompts for what it leaves behind: no cache, the last logits only.

    `inputs` are keywords of the model's `generate` or `forward`.
    """
    accepted = inspect.signature(type(model).forward).parameters
    settings = {"use_cache": False, **({"logits_to_keep": 1} if "logits_to_keep" in accepted else {})}
    model(**{"input_ids" if name == "inputs" else name: value for name, value in inputs.items()}, **settings)
