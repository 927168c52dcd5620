"""Where a module computes: its weights' own device, unless accelerate keeps them elsewhere between calls."""

from __future__ import annotations

import torch
from torch import nn


def execution_device(module: nn.Module) -> torch.device:
    """Return the device that `module` computes on.

    Weights that accelerate offloads (`device_map` with `cpu` or `disk`) are on the meta device between calls; the hook
    of their module has the execution device.
    """
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        weight = next(part.parameters(recurse=False), None)
        if weight is not None and not weight.is_meta:
            return weight.device
    return torch.device("cpu")
