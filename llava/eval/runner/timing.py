"""`ForwardTimer`: milliseconds that a model spends in prefill, decoding and vision, measured around its own modules.

prefill:
    forwards of the decoder stack with more than one new token a prompt
decode:
    the decoder stack's other forwards
vision:
    the vision tower and its projector: on the decoder in LLaVA's own layout, else everything beside the decoder
The head, sampling and tokenisation are outside. On CUDA and MPS the clock is read after a synchronisation.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from llava.model.pruning.families import family_of

VISION_MODULES = ("vision_tower", "mm_projector")


@dataclass(frozen=True)
class Milliseconds:
    """Time by stage, and the number of decoder forwards of each kind."""

    prefill: float = 0.0
    decode: float = 0.0
    vision: float = 0.0
    prefills: int = 0
    decode_steps: int = 0


def vision_modules(decoder: nn.Module, entry: nn.Module | None) -> list[nn.Module]:
    """Return the modules that run before the decoder; `entry` is the multimodal module around it, if there is one."""
    if entry is not None:
        return [module for module in entry.children() if module is not decoder]
    return [module for name in VISION_MODULES if (module := getattr(decoder, name, None)) is not None]


class ForwardTimer:
    """Context manager around any supported model's forwards; inside or outside a `prune` block.

    `take()` returns the times since the last `take`. Raises `ValueError` for a model of no known family.
    """

    def __init__(self, model: nn.Module):
        family = family_of(model)
        self._decoder = family.decoder(model)
        self._vision = vision_modules(self._decoder, family.entry(model))
        self._device = next(self._decoder.parameters()).device
        self._hooks: list = []
        self._started: list[tuple[str, float]] = []
        self._spent: dict[str, list[float]] = {}
        self.take()

    def __enter__(self) -> ForwardTimer:
        for module in (self._decoder, *self._vision):
            self._hooks.append(module.register_forward_pre_hook(self._start, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._stop, always_call=True))
        return self

    def __exit__(self, *exception) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._started = [], []

    def take(self) -> Milliseconds:
        """Return the times since the last call, and reset them."""
        spent, self._spent = self._spent, {"prefill": [], "decode": [], "vision": []}
        if not spent:
            return Milliseconds()
        prefill, decode, vision = spent["prefill"], spent["decode"], spent["vision"]
        return Milliseconds(sum(prefill), sum(decode), sum(vision), len(prefill), len(decode))

    def _start(self, module, args, kwargs):
        stage = "vision"
        if module is self._decoder:
            given = [kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args[:1]]
            new = next(tokens for tokens in given if tokens is not None)
            stage = "prefill" if new.shape[1] > 1 else "decode"
        self._started.append((stage, self._now()))

    def _stop(self, module, args, output):
        stage, start = self._started.pop()
        self._spent[stage].append(1000 * (self._now() - start))

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()
