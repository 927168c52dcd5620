"""`record`: run prompts through the pruning engine, dense or pruned, and measure a probe after every layer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from llava.model.pruning import PruningConfig, PruningTrace, prune
from llava.model.pruning.methods import NoPruning
from llava.model.pruning.probes import Probe
from llava.model.pruning.record import Recorded, recorder


def record(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    probe: Probe,
    config: PruningConfig | Mapping[str, Any] | str | None = None,
    visual_mask: torch.Tensor | None = None,
) -> list[tuple[Recorded, PruningTrace]]:
    """Run one prefill of a batch; return each prompt's measurements of `probe` and its trace.

    inputs:
        keywords of the model's `generate` (`Inputs.collate`) or `forward`
    config:
        prunes on the way; None: nothing is pruned, and every layer attends to everything
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
    return list(zip(recorded, session.traces, strict=True))


@torch.no_grad()
def read(model: torch.nn.Module, inputs: Mapping[str, Any], use_cache: bool = False) -> None:
    """Run one forward over the prompts for its side effects, last logits only.

    `inputs` are keywords of the model's `generate` or `forward`; `use_cache`: keys and values are kept as for decoding,
    so that traces count them.
    """
    accepted = inspect.signature(type(model).forward).parameters
    settings = {"use_cache": use_cache, **({"logits_to_keep": 1} if "logits_to_keep" in accepted else {})}
    model(**{"input_ids" if name == "inputs" else name: value for name, value in inputs.items()}, **settings)
