"""Variable-length attention over packed streams: torch's or flash-attn's kernel on CUDA, SDPA by segment elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from .packed import Segments, upload

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Segments, bool, float], torch.Tensor]
"""(query [1, H, Tq, d], key [1, Hkv, Tk, d], value [1, Hkv, Tk, d], segments, causal, scale) → [1, Tq, H, d].

The rows of a segment are the last ones of its keys: under `causal`, row i of q reads the first k − q + i + 1 of k keys.
"""

BACKENDS = ("auto", "sdpa", "varlen", "flash_attn")


def choose(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """Return the kernel for states of `dtype` and `head_dim` on `device`.

    `auto` takes torch's `varlen_attn` where its flash kernel runs (CUDA from compute capability 8.0, half precision,
    head size a multiple of 8 up to 256, a torch that has it), else SDPA.

    Raises:
        ValueError: unknown backend, or one that this machine, device or dtype cannot run.

    """
    if backend not in BACKENDS:
        raise ValueError(f"attention backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    obstacle = _flash_obstacle(device, dtype, head_dim)
    if backend == "sdpa" or (backend == "auto" and obstacle):
        return by_segment
    if obstacle:
        raise ValueError(f"attention backend {backend!r} needs {obstacle}; use 'auto' or 'sdpa'")
    kernel = _flash_attn() if backend == "flash_attn" else _torch_varlen()
    if kernel is not None:
        return kernel
    if backend == "auto":
        return by_segment
    needed = "the flash-attn package (pip install 'llava[flash]')" if backend == "flash_attn" else "torch ≥ 2.10"
    raise ValueError(f"attention backend {backend!r} needs {needed}")


def _flash_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return what flash kernels need and these states lack, or None."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return f"CUDA and fp16 or bf16, got {device.type} and {dtype}"
    if head_dim % 8 or head_dim > 256:
        return f"a head size that is a multiple of 8 up to 256, got {head_dim}"
    if torch.version.hip is None and _capability(device) < (8, 0):
        return "a GPU of compute capability 8.0 or newer"
    if torch.version.cuda is not None and not torch.backends.cuda.is_flash_attention_available():
        return "a torch that was built with flash attention"
    return None


@lru_cache(maxsize=16)
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def by_segment(query, key, value, segments: Segments, causal: bool, scale: float) -> torch.Tensor:
    """SDPA, one segment after the other; see `Kernel` for shapes."""
    groups = query.shape[1] // key.shape[1]
    trained = query.device.type == "cpu" and query.requires_grad
    attend = _for_gradients if trained else _sdpa
    if groups > 1 and not trained:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if len(segments.queries) == 1:
        return attend(query, key, value, causal, scale)
    pieces = [
        attend(q, k, v, causal, scale)
        for q, k, v in zip(
            query.split(segments.queries, 2), key.split(segments.keys, 2), value.split(segments.keys, 2), strict=True
        )
        if q.shape[2]
    ]
    return torch.cat(pieces, 1)


def _sdpa(query, key, value, causal: bool, scale: float) -> torch.Tensor:
    """One segment; its rows are the last ones of its keys."""
    rows, keys = query.shape[2], key.shape[2]
    mask = None
    if causal and 1 < rows < keys:
        mask = torch.ones(rows, keys, dtype=torch.bool, device=query.device).tril(keys - rows)
    causal = causal and 1 < rows == keys
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scale).transpose(1, 2)


def _for_gradients(query, key, value, causal: bool, scale: float) -> torch.Tensor:
    """One segment by plain products: the backward of SDPA on a CPU takes three to six times as long (bf16, 490 rows).

    The heads of a group are more rows of one product, so that keys and values are not repeated.
    """
    (_, heads, rows, size), keys, shared = query.shape, key.shape[2], key.shape[1]
    folded = (query * scale).reshape(1, shared, heads // shared * rows, size)
    scores = (folded @ key.transpose(2, 3)).view(1, heads, rows, keys)
    if causal and rows > 1:
        scores = scores + scores.new_full((rows, keys), float("-inf")).triu(keys - rows + 1)
    weights = scores.softmax(-1).view(1, shared, heads // shared * rows, keys)
    return (weights @ value).view(1, heads, rows, value.shape[-1]).transpose(1, 2)


def varlen(function: Callable, query, key, value, segments: Segments, causal: bool, scale: float) -> torch.Tensor:
    """Call `torch.nn.attention.varlen.varlen_attn`, whose arguments differ between torch releases."""
    accepted = _parameters(function)
    settings = {}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in accepted:
            settings["enable_gqa"] = True
        else:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if "scale" in accepted:
        settings["scale"] = scale
    else:
        query = query * (scale * query.shape[-1] ** 0.5)
    if causal:
        settings |= {"window_size": (-1, 0)} if "window_size" in accepted else {"is_causal": True}
    streams = (part[0].transpose(0, 1) for part in (query, key, value))
    return function(*streams, *_bounds(segments, query.device), **settings)[None]


def flash(function: Callable, query, key, value, segments: Segments, causal: bool, scale: float) -> torch.Tensor:
    """Call flash-attn's `flash_attn_varlen_func` (grouped-query heads are its own business)."""
    streams = (part[0].transpose(0, 1) for part in (query, key, value))
    return function(*streams, *_bounds(segments, query.device), softmax_scale=scale, causal=causal)[None]


@lru_cache(maxsize=32)
def _bounds(segments: Segments, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    ends = [np.concatenate([[0], np.cumsum(part)]).astype(np.int32) for part in (segments.queries, segments.keys)]
    with torch.inference_mode(False):  # kept beyond this call, perhaps for one that autograd follows
        queries, keys = (upload(end, device) for end in ends)
    return queries, keys, max(segments.queries), max(segments.keys)


@lru_cache(maxsize=4)
def _parameters(function: Callable) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _torch_varlen() -> Kernel | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return lambda *arguments: varlen(varlen_attn, *arguments)


def _flash_attn() -> Kernel | None:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return lambda *arguments: flash(flash_attn_varlen_func, *arguments)
