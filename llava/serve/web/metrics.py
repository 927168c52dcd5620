"""The figures of GET /metrics, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llava.model.pruning.prefix_cache import Reused

from .batch import Done
from .service import ModelService

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("llava_requests", "Requests by path and status", ["path", "status"], registry=registry)
        self.first = Histogram(
            "llava_first_token_seconds", "From a request to its first token", registry=registry, buckets=SECONDS
        )
        self.whole = Histogram(
            "llava_answer_seconds", "From a request to its last token", registry=registry, buckets=SECONDS
        )
        self.batches = Histogram(
            "llava_batch_prompts", "Prompts per batch", registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.tokens = Counter("llava_tokens", "Tokens of prompts and answers", ["kind"], registry=registry)
        self.layer_tokens = Counter(
            "llava_layer_tokens", "Prompt tokens summed over layers: given, run, and not run again", ["kind"],
            registry=registry,
        )  # fmt: skip
        self.cancelled = Counter("llava_cancelled", "Requests whose client went away", registry=registry)

    def watch(self, service: ModelService) -> None:
        """Add what is read from the service when the figures are asked for."""
        waiting = Gauge("llava_waiting_requests", "Requests in the queue", registry=self.registry)
        waiting.set_function(lambda: service.waiting)
        for name, what in (("prefix", "prefix caches"), ("picture", "image store")):
            gauge = Gauge(f"llava_{name}_cache_bytes", f"Bytes in the {what}", registry=self.registry)
            gauge.set_function((lambda: service.prefix_bytes) if name == "prefix" else (lambda: service.store.nbytes))

    def answered(self, done: Done) -> None:
        """Count one answer."""
        times = done.times
        first = times.queue + times.vision + times.first_token
        self.first.observe(first / 1000)
        self.whole.observe((first + times.decode) / 1000)
        self.tokens.labels("prompt").inc(done.prompt_tokens)
        self.tokens.labels("visual").inc(done.trace.visual_tokens)
        self.tokens.labels("answer").inc(done.new_tokens)
        self.layer_tokens.labels("given").inc(done.prompt_tokens * len(done.trace.tokens_per_layer))
        self.layer_tokens.labels("kept").inc(sum(done.trace.tokens_per_layer))

    def on_batch(self, prompts: int, reused: Reused | None) -> None:
        """Count one batch."""
        self.batches.observe(prompts)
        if reused is not None:
            self.layer_tokens.labels("reused").inc(reused.rows - reused.run)

    def text(self) -> bytes:
        """Return the figures in Prometheus' format."""
        return generate_latest(self.registry)
