"""`ModelService`: one thread owns the model; requests wait in a queue and are answered in batches as they arrive."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from llava.eval.runner.generate import Generator
from llava.model.inputs import Turn
from llava.model.loaded import LoadedModel
from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.families import family_of
from llava.model.pruning.methods import NoPruning
from llava.model.pruning.prefix_cache import CACHE_BYTES, PrefixCache, Reused

from .batch import Batch, Cancelled, Done, Failed, Job, LayerHooks, Progress, Sample, Times
from .pictures import PictureStore

log = logging.getLogger("llava.web")
PREFIX_CACHES = 4


class Busy(RuntimeError):
    """The queue is full."""


@dataclass(frozen=True)
class Sizes:
    """Limits of the service: prompts per batch, waiting requests, answer tokens, bytes of all prefix caches.

    `gather`: seconds that an idle model waits for more requests to share a batch. `engine` False: requests without
    pruning run outside of the pruning engine, and nothing of a prompt is kept: plain transformers.
    """

    batch: int = 16
    queue: int = 64
    new_tokens: int = 1024
    prefix_bytes: int | None = CACHE_BYTES
    gather: float = 0.004
    engine: bool = True


@dataclass(eq=False)
class Call:
    """Something else for the thread that owns the model, such as an analysis; never together with other work."""

    run: Callable[[], Any]
    tell: Callable[[Any], None]
    cancelled: threading.Event
    progress: bool = False


class ModelService:
    """Answers jobs with one loaded model; may be used from any thread.

    loaded, config:
        the model, and how a job is pruned that does not say; `NoPruning` where the command was given none
    sizes:
        see `Sizes`
    on_batch:
        called with every batch's number of prompts and what the prefix cache saved of it
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: PruningConfig,
        store: PictureStore,
        sizes: Sizes | None = None,
        on_batch: Callable[[int, Reused | None], None] = lambda count, reused: None,
    ):
        self.loaded, self.store, self.sizes, self.on_batch = loaded, store, sizes or Sizes(), on_batch
        decoder = family_of(loaded.model).decoder(loaded.model)
        self.layers = decoder.config.num_hidden_layers
        self.config = config.resolved(self.layers)
        ends = loaded.model.generation_config.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list | tuple) else [ends]) - {None}
        self._hooks = LayerHooks(decoder.layers[: self.layers])
        self._prefixes: OrderedDict[str, PrefixCache] = OrderedDict()
        self.writing = threading.Lock()  # tokenizers are not made for threads
        self._waiting: deque[Job | Call] = deque()
        self._changed = threading.Condition()
        self._running: list[Job | Call] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop: what waits or runs fails."""
        with self._changed:
            self._closed = True
            for one in (*self._waiting, *self._running):
                one.cancelled.set()
            self._changed.notify_all()
        self._thread.join(60)

    @property
    def alive(self) -> bool:
        """Whether the model's thread runs."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def prefix_bytes(self) -> int:
        """Bytes of all prefix caches."""
        return sum(cache.nbytes for cache in list(self._prefixes.values()))

    @cached_property
    def _checked(self) -> OrderedDict[str, PruningConfig]:
        return OrderedDict()

    def check_config(self, config: PruningConfig) -> PruningConfig:
        """Return a config with nothing left open; raises `ValueError` for one that this model cannot run."""
        key = repr(config)
        if key not in self._checked:
            config.check_layers(self.layers)
            prune(self.loaded.model, config)  # a session checks all that there is to check when it is made
            self._checked[key] = config.resolved(self.layers)
            while len(self._checked) > 256:
                self._checked.popitem(last=False)
        return self._checked[key]

    def encode(self, turns: Sequence[Turn]) -> list[int]:
        """Return the row of a conversation; raises `ValueError` as `Inputs.encode` does."""
        with self.writing:
            return self.loaded.inputs.encode(turns)

    def submit(self, work: Job | Call) -> None:
        """Queue work; its events go to its `tell`, from the model's thread.

        Raises:
            Busy: the queue is full, or the service is closed.

        """
        with self._changed:
            self._waiting = deque(one for one in self._waiting if not one.cancelled.is_set())
            if self._closed or len(self._waiting) >= self.sizes.queue:
                raise Busy(f"{len(self._waiting)} requests are waiting, the limit: try again later")
            if work.progress:
                work.tell(Progress(0, self.layers, len(self._waiting) + len(self._running)))
            self._waiting.append(work)
            self._changed.notify_all()

    def cancel(self, work: Job | Call) -> None:
        """Forget work: its place in the queue, or in the batch that runs, is free."""
        work.cancelled.set()
        with self._changed:
            if work in self._waiting:
                self._waiting.remove(work)

    def _work(self) -> None:
        torch.set_grad_enabled(False)
        while True:
            with self._changed:
                self._running = []
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    for one in self._waiting:
                        one.tell(Failed(Busy("the server is stopping")))
                    return
                until = time.monotonic() + self.sizes.gather
                while 0 < len(self._waiting) < self.sizes.batch and (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
                self._running = self._next()
            live = [one for one in self._running if not one.cancelled.is_set()]
            if not live:
                continue
            try:
                self._call(live[0]) if isinstance(live[0], Call) else self._answer(live)
            except BaseException as error:  # whatever happens, the thread lives on
                log.exception("a batch failed")
                self._fail(live, error)

    def _next(self) -> list[Job | Call]:
        """Take the oldest work, and what can run with it, out of the queue."""
        if not self._waiting:
            return []
        first = self._waiting[0]
        alike = [first]
        if isinstance(first, Job):
            alike = [one for one in self._waiting if isinstance(one, Job) and one.kind == first.kind]
            alike = alike[: self.sizes.batch]
        self._waiting = deque(one for one in self._waiting if one not in alike)
        return alike

    def _call(self, call: Call) -> None:
        self._hooks.jobs = [call]
        try:
            call.tell(call.run())
        except Cancelled:
            pass
        except Exception as error:
            call.tell(Failed(error))
        finally:
            self._hooks.jobs = []

    def _fail(self, jobs: Sequence[Job | Call], error: BaseException) -> None:
        for job in jobs:
            if isinstance(job, Call) or not job.cancelled.is_set():
                job.tell(Failed(error if isinstance(error, Exception) else RuntimeError(type(error).__name__)))

    def _answer(self, jobs: list[Job]) -> None:
        """Answer jobs of one kind; on out-of-memory in halves, and a single job fails."""
        samples: list[Sample] = []
        config, cache = self._engine_of(jobs[0])
        try:
            with Generator(self.loaded.model, self.loaded.inputs, config, cache) as generator:
                self._run(generator, jobs, samples)
        except Cancelled:
            self._forget(config)
        except torch.OutOfMemoryError as error:
            self._forget(config)
            self._prefixes.clear()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            started = [one.job for one in samples if one.stream.tokens and not one.ended]
            self._fail(started, error)
            again = [job for job in jobs if job not in started and not any(s.job is job and s.ended for s in samples)]
            if len(jobs) == 1:
                self._fail(again, error)
                return
            for half in (again[: len(again) // 2], again[len(again) // 2 :]):
                if half:
                    self._answer(half)
        except Exception:
            self._forget(config)
            raise

    def _run(self, generator: Generator, jobs: list[Job], samples: list[Sample]) -> None:
        begun = time.perf_counter()
        reading = any(stage.reads_vision for stage in generator.config.stages) if generator.config else False
        pictures = {picture.key: picture for job in jobs for picture in job.pictures}
        new = [one for one in pictures.values() if one.features is None or reading]
        if new:
            features = self.loaded.inputs.encode_images(self.loaded.model, [one.processed for one in new])
            for picture, made in zip(new, features, strict=True):
                picture.features = made
            self.store.account()
        shown = {job: [picture.features for picture in job.pictures] for job in jobs}
        fitting = [job for job in jobs if self._fits(job, shown[job])]
        if not fitting:
            return
        started = time.perf_counter()
        before = replace(generator.reused) if generator.reused is not None else None
        traces: list[Any] = []

        def on_end(sample: Sample) -> None:
            if sample.ended == "stopped":
                return
            job, number = sample.job, samples.index(sample)
            traces[:] = traces or generator.traces([one.row for one in fitting], [shown[one] for one in fitting])
            first = sample.stream.first_at or sample.ended_at
            spans = (begun - job.asked_at, started - begun, first - started, sample.ended_at - first)
            sample.job.tell(
                Done(
                    sample.stream.text,
                    sample.ended,
                    sample.taken(),
                    job.length,
                    sample.stream.tokens,
                    Times(*(1000 * span for span in spans)),
                    traces[number],
                    len(fitting),
                    _since(generator.reused, before),
                )
            )

        inputs = self.loaded.inputs
        samples += [Sample(job, inputs.tokenizer, inputs.stop_string, self._ends) for job in fitting]
        batch = Batch(samples, on_end)
        sampling = jobs[0].sampling.generation_config(max(job.limit for job in fitting))
        if jobs[0].seed is not None:
            torch.manual_seed(jobs[0].seed)
        self._hooks.jobs = fitting
        try:
            generator.generate(
                [job.row for job in fitting],
                [shown[job] for job in fitting],
                generation_config=sampling,
                **batch.arguments(),
            )
        finally:
            self._hooks.jobs = []
        self.on_batch(len(fitting), _since(generator.reused, before))

    def _fits(self, job: Job, images: list[Any]) -> bool:
        """Note a prompt's length and how many tokens its answer may have; refuse it where none fits."""
        inputs = self.loaded.inputs
        job.length = inputs.length(job.row, images)
        context = inputs.limit or self.loaded.context_len
        job.limit = min(job.sampling.max_new_tokens, context - job.length)
        if job.limit < 1:
            job.tell(Failed(TooLong(f"the prompt has {job.length} tokens with its images, the model takes {context}")))
        return job.limit >= 1

    def _engine_of(self, job: Job) -> tuple[PruningConfig | None, PrefixCache | None]:
        """Return the config to run a job with, None outside of the engine, and the prefix cache of its config."""
        config = job.config or NoPruning()
        if not self.sizes.engine and type(config) is NoPruning and config.before is None:
            return None, None
        if not job.reuse or self.sizes.prefix_bytes is None or any(stage.no_reuse for stage in config.stages):
            return config, None
        key = repr(config)
        if key not in self._prefixes:
            self._prefixes[key] = PrefixCache(self.sizes.prefix_bytes // PREFIX_CACHES)
            while len(self._prefixes) > PREFIX_CACHES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return config, self._prefixes[key]

    def _forget(self, config: PruningConfig | None) -> None:
        """Drop a config's prefixes: a prefill that did not end may have left half a block."""
        self._prefixes.pop(repr(config), None)


class TooLong(ValueError):
    """A prompt longer than the model's context."""


def _since(now: Reused | None, before: Reused | None) -> Reused | None:
    if now is None or before is None:
        return None
    return Reused(*(getattr(now, key) - getattr(before, key) for key in ("prompts", "found", "rows", "run")))
