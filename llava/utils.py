"""Device and dtype choice, shared by the loader, the evaluation and the chat."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Turn a device name into a device that exists here; "auto" is CUDA, then MPS, then CPU.

    Raises `ValueError` for an unknown name, and for CUDA or MPS where there is none.
    """
    if str(name) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {name!r} is unknown: use auto, cpu, mps, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"device {str(name)!r} is not here ({count} CUDA devices): use auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not available on this machine: use auto or cpu")
    return device


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Turn "float16", "bf16", … or a dtype into a dtype; None or "auto" is float32 on CPU, float16 elsewhere.

    Raises `ValueError` for anything else.
    """
    if dtype is None or dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    found = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(str(dtype).removeprefix("torch."))
    if found not in DTYPES.values():
        raise ValueError(f"dtype {dtype!r} is not supported: use float32, float16 or bfloat16")
    return found


def disable_torch_init() -> None:
    """Do nothing; LLaVA's scripts call this before loading.

    There it keeps `nn.Linear` from being initialised before the weights arrive. `load_pretrained_model` builds the
    model without storage, so nothing is initialised at all, and torch's classes need no patching.
    """


def device_name(device: torch.device) -> str:
    """Name the GPU, or this machine's processor, as figures are labelled with it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
