"""CUDA graphs of decoder layers: few tokens take longer to launch than to compute, and a recorded layer is one launch.

Recorded is what one prompt reads densely with at most `MOST` tokens: the layers after the filter. Widths are multiples
of `STEP`; rows beyond the prompt repeat its last one, and no row of the prompt reads them. All else runs as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from .attention import PrefillCall, RecordedCall, run_layer
from .layers import LayerKind
from .packed import PackedTokens
from .reading import is_plain
from .softmax import SCALED

STEP, MOST = 64, 512
WARM_UP = 2
"""Runs before a recording: libraries allocate their workspaces in the first."""


class CudaRecorder:
    """Records with `torch.cuda.graph`; recordings share their memory, since they are replayed one after the other."""

    def __init__(self):
        self._pool = None

    def check(self, device: torch.device) -> None:
        """Raise `ValueError` for a device that has no CUDA graphs."""
        if device.type != "cuda":
            raise ValueError(f"cuda_graphs needs a model on a CUDA device, this one is on {device}; leave it out")

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what runs `work` again: the same kernels on the same memory, without its Python."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                work()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # other threads may allocate meanwhile: those that pin a loader's batches
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph.replay


class LayerGraphs:
    """The recorded layers of a decoder, made as they are needed; for `prune(…, cuda_graphs=graphs)`.

    One that is handed to several sessions keeps its recordings from one to the next. They are forgotten when a weight
    has been replaced or moved; hooks and adapters that layers are given later are not seen.

    most:
        longest prompt that is recorded, in tokens
    """

    def __init__(self, most: int = MOST, record: Any = None):
        self.most = most
        self.record = CudaRecorder() if record is None else record
        self._weights: Hashable = None
        self._buffers: dict[Hashable, _Buffers] = {}
        self._replays: dict[Hashable, Callable[[], None]] = {}

    @property
    def recorded(self) -> int:
        """How many recordings are kept."""
        return len(self._replays)

    def check(self, decoder: torch.nn.Module) -> None:
        """Raise `ValueError` for a decoder that cannot be recorded: on several devices, or on one without graphs."""
        devices = sorted({str(parameter.device) for parameter in decoder.parameters()})
        if len(devices) > 1:
            raise ValueError(
                f"cuda_graphs needs all layers on one device, they are on {', '.join(devices)}; leave it out"
            )
        self.record.check(torch.device(devices[0]))

    def ready(self, decoder: torch.nn.Module) -> LayerGraphs:
        """Return the graphs, without recordings of weights that are not the decoder's any more."""
        weights = tuple((id(parameter), parameter.data_ptr()) for parameter in decoder.parameters())
        if weights != self._weights:
            self._buffers.clear()
            self._replays.clear()
            self._weights = weights
        return self

    def fit(self, tokens: PackedTokens, call: PrefillCall, kwargs: dict[str, Any]) -> bool:
        """Whether a layer that reads `tokens` as `call` says can be recorded."""
        return (
            tokens.prefix is None
            and tokens.weights is None
            and len(tokens.lengths) == 1
            and tokens.lengths[0] <= self.most
            and call.unread is None
            and call.frozen is None
            and is_plain(tokens, call.kind)
            and (call.rule.dense or (call.rule.before == "dense" and not tokens.visual.any()))
            and not any(isinstance(value, torch.Tensor) for value in kwargs.values())
        )

    def run(self, layer: torch.nn.Module, tokens: PackedTokens, call: PrefillCall, kwargs: dict[str, Any]):
        """Return the layer's output [1, T, D], and leave query, key and value in `call`.

        Output and query are views of memory that the next layer of this width writes to.
        """
        count = tokens.lengths[0]
        width = -(-count // STEP) * STEP
        shape = (width, tokens.hidden.dtype, tokens.hidden.device, tuple(part.dtype for part in tokens.rope))
        if shape not in self._buffers:
            self._buffers[shape] = _Buffers(tokens, width)
        buffers = self._buffers[shape]
        key = (layer, shape, repr(sorted(kwargs.items())))
        if key not in self._replays:
            entering = tokens.with_hidden(tokens.hidden.clone())  # recording runs the layer, over what may be its input
            buffers.fill(entering)
            self._replays[key] = self.record(lambda: buffers.read(layer, call.kind, kwargs))
            tokens = entering
        buffers.fill(tokens)
        self._replays[key]()
        call.query = buffers.query[:, :, :count]
        call.key, call.value = (part[:, :, :count].clone() for part in (buffers.key, buffers.value))
        call.softmax = buffers.softmax
        return buffers.hidden[:, :count]


class _Buffers:
    """Memory that all recorded layers of one width read and write."""

    def __init__(self, tokens: PackedTokens, width: int):
        with torch.inference_mode(False):  # outlives the block that it is made in
            self.hidden = _wide(tokens.hidden, width, 1)
            self.rope = tuple(_wide(part, width, part.ndim - 2) for part in tokens.rope)
        self.query = self.key = self.value = None
        self.softmax = SCALED
        self._angles = None

    def fill(self, tokens: PackedTokens) -> None:
        """Take in the tokens, unless they are what the layer before has left here."""
        if tokens.hidden.data_ptr() != self.hidden.data_ptr():
            _copy(self.hidden, tokens.hidden, 1)
        if tokens.rope is not self._angles:
            for mine, part in zip(self.rope, tokens.rope, strict=True):
                _copy(mine, part, part.ndim - 2)
            self._angles = tokens.rope

    def read(self, layer: torch.nn.Module, kind: LayerKind, kwargs: dict[str, Any]) -> None:
        """Run the layer over the buffers; the part that is recorded."""
        call = RecordedCall()
        output = run_layer(layer, self.hidden, kind.rope(self.rope), call, kwargs)
        if self.query is None:
            with torch.inference_mode(False):
                made = (torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in call.states)
                self.query, self.key, self.value = made
            self.softmax = call.softmax
        for mine, part in zip((self.query, self.key, self.value), call.states, strict=True):
            mine.copy_(part)
        self.hidden.copy_(output)


def _wide(like: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    shape = list(like.shape)
    shape[dim] = width
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _copy(buffer: torch.Tensor, part: torch.Tensor, dim: int) -> None:
    """Write `part` into `buffer`, its last row into the rest: a row as any other, however often layers run over it."""
    count = part.shape[dim]
    buffer.narrow(dim, 0, count).copy_(part)
    if rest := buffer.shape[dim] - count:
        buffer.narrow(dim, count, rest).copy_(part.narrow(dim, count - 1, 1))
