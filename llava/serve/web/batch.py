"""One batch of answers under way: each sample streams, ends and is cancelled by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Literal, NamedTuple

import torch
from transformers import LogitsProcessor, StoppingCriteria

from llava.model.pruning import PruningConfig, PruningTrace
from llava.model.pruning.prefix_cache import Reused
from llava.serve.chat import Sampling
from llava.serve.generation import AnswerStream

from .pictures import Picture

Ended = Literal["end", "limit", "stopped"]


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


class Token(NamedTuple):
    """A new token: id, log-probability before temperature and top-p, and the most probable (id, log-probability)."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


class Text(NamedTuple):
    """Event: a piece of the answer, and the tokens since the last piece (empty where none were asked for)."""

    piece: str
    tokens: list[Token]


class Progress(NamedTuple):
    """Event: the prompt has reached a layer of the decoder; `ahead`: requests that run first."""

    layer: int
    layers: int
    ahead: int = 0


class Times(NamedTuple):
    """Milliseconds: in the queue, encoding images, from there to the first token, and to the last."""

    queue: float
    vision: float
    first_token: float
    decode: float


class Done(NamedTuple):
    """Event: the whole answer.

    `ended` as in `llava.serve.chat.Reply`; `tokens`: those whose text was in no piece; `batch`: prompts that were read
    together; `reused`: what the prefix cache saved for the batch, None without one.
    """

    text: str
    ended: Ended
    tokens: list[Token]
    prompt_tokens: int
    new_tokens: int
    times: Times
    trace: PruningTrace
    batch: int
    reused: Reused | None


class Failed(NamedTuple):
    """Event: no answer; `error` says why."""

    error: Exception


@dataclass(eq=False)
class Job:
    """A prompt to answer, and whom to tell.

    row, pictures:
        the prompt (`Inputs.encode`) and its images
    config:
        the pruning config, resolved; None: the untouched model, outside of the pruning engine
    stop, seed, top_logprobs:
        texts that end the answer; of sampling, None: whatever comes; probable tokens per new token, None: no
        log-probabilities
    reuse:
        whether the prefix cache may be used
    progress:
        whether `Progress` events are wanted
    """

    row: list[int]
    pictures: tuple[Picture, ...]
    config: PruningConfig | None
    sampling: Sampling
    tell: Callable[[Any], None]
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None
    reuse: bool = True
    progress: bool = False
    cancelled: Event = field(default_factory=Event)
    asked_at: float = field(default_factory=time.perf_counter)
    length: int = 0
    limit: int = 0

    @property
    def kind(self) -> Any:
        """What jobs of one batch have in common."""
        sampled = self.sampling.temperature > 0
        draw = (self.sampling.temperature, self.sampling.top_p, self.seed if self.seed is None else id(self))
        return repr(self.config), self.reuse, draw if sampled else None


class Sample:
    """The answer to one job of a batch while it is written."""

    def __init__(self, job: Job, tokenizer: Any, stop_string: str | None, ends: Collection[int]):
        self.job, self.ended, self._ends = job, None, ends
        self.tokens: list[Token] = []
        self.stream = AnswerStream(tokenizer, self._tell, [stop_string, *job.stop])
        self.stream.put(torch.empty(0))  # as `generate` does, which shows the prompt first
        self.ended_at = 0.0

    def put(self, token: torch.Tensor, logprobs: torch.Tensor | None) -> None:
        """Take one new token, int64 [1], and the log-probabilities it was drawn from, fp32 [V] or None."""
        if self.ended:
            return  # `generate` fills up with padding
        if logprobs is not None:
            best = logprobs.topk(self.job.top_logprobs)
            top = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            self.tokens.append(Token(int(token), float(logprobs[token]), top))
        self.stream.put(token)
        if self.job.cancelled.is_set():
            self.ended = "stopped"
        elif self.stream.stopped or int(token) in self._ends:
            self.ended = "end"
        elif self.stream.tokens >= self.job.limit:
            self.ended = "limit"
        if self.ended:
            self.stream.end()
            self.ended_at = time.perf_counter()

    def taken(self) -> list[Token]:
        """Return the tokens that no event has had yet."""
        tokens, self.tokens = self.tokens, []
        return tokens

    def _tell(self, piece: str) -> None:
        self.job.tell(Text(piece, self.taken()))


class Batch(StoppingCriteria):
    """The samples of a batch as a stopping criterion of `generate`, which it shows every new token.

    `on_end` is called with each sample as soon as it has ended, whatever the others do. It is no streamer: `generate`
    may call those a step late.
    """

    def __init__(self, samples: list[Sample], on_end: Callable[[Sample], None]):
        self.samples, self.on_end = samples, on_end
        self._logprobs: torch.Tensor | None = None
        self._wanted = any(one.job.top_logprobs is not None for one in samples)

    def arguments(self) -> dict[str, Any]:
        """Keywords of `generate`."""
        more = {"logits_processor": [_Recorder(self)]} if self._wanted else {}
        return {"stopping_criteria": [self], **more}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Take tokens int64 `[B, n]`, the last of which is new; return which samples have ended, bool `[B]`."""
        new = input_ids[:, -1:].cpu()
        for number, sample in enumerate(self.samples):
            if sample.ended:
                continue
            wanted = sample.job.top_logprobs is not None
            sample.put(new[number], self._logprobs[number] if wanted else None)
            if sample.ended:
                self.on_end(sample)
        return torch.tensor([bool(one.ended) for one in self.samples], device=input_ids.device)


class _Recorder(LogitsProcessor):
    """Note each step's log-probabilities, before temperature and top-p change them."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.batch._logprobs = scores.float().log_softmax(-1).cpu()
        return scores


class LayerHooks:
    """Hooks on a decoder's layers that tell jobs how far their prompts are, and raise `Cancelled` when all are gone."""

    def __init__(self, layers: Collection[torch.nn.Module]):
        self.jobs: list[Job] = []
        self._count = len(layers)
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(lambda module, args, number=number: self._reached(number, args))

    def _reached(self, layer: int, args: tuple[torch.Tensor, ...]) -> None:
        if not self.jobs or args[0].shape[1] == 1:  # decoding: the streamer sees to it
            return
        if all(job.cancelled.is_set() for job in self.jobs):
            raise Cancelled
        for job in self.jobs:
            if job.progress:
                job.tell(Progress(layer, self._count))
