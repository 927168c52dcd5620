"""Asks a loaded model what a harness wants to know: batches of answers, and likelihoods of given continuations.

Nothing here knows lmms-eval. An error names the requests it belongs to and is never turned into an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from tqdm import tqdm

from llava.eval.lmms_eval.arguments import Decoding
from llava.eval.lmms_eval.messages import Conversation
from llava.eval.lmms_eval.steering import Forced, UntilCriteria, cut
from llava.eval.lmms_eval.windows import Prompt, Window, windows
from llava.model.inputs import ImageFeatures, Inputs
from llava.model.pruning import PruningConfig, PruningSession, PruningTrace, prune
from llava.model.pruning.methods import NoPruning
from llava.model.pruning.prefix_cache import CACHE_BYTES, Reused

_UNWEIGHTED = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}


class RequestError(RuntimeError):
    """A request that could not be answered; the message begins with the request's name."""


@dataclass(frozen=True)
class Request:
    """One question of a harness.

    name:
        for messages, such as `task/split/document`
    prompt:
        requests that have it in common have one and the same conversation: it is read and prepared once
    read:
        called when the request's turn comes, so that not all images are in memory
    wanted:
        how to generate, or the continuation whose likelihood is asked for
    """

    name: str
    prompt: Hashable
    read: Callable[[], Conversation]
    wanted: Decoding | str


@dataclass(frozen=True)
class Likelihood:
    """Natural log-probability of a continuation, summed over its tokens, and whether greedy decoding writes it."""

    logprob: float
    tokens: int
    greedy: bool


@dataclass
class Saved:
    """Sums over the prompts that were read pruned; FLOPs as `PruningTrace.flops` counts them (visual tokens)."""

    prompts: int = 0
    flops: float = 0.0
    dense_flops: float = 0.0

    def add(self, trace: PruningTrace) -> None:
        """Count one prompt."""
        self.prompts += 1
        self.flops += trace.flops()
        self.dense_flops += trace.dense_flops()

    def __str__(self) -> str:
        share = 1 - self.flops / self.dense_flops if self.dense_flops else 0.0
        return f"{self.prompts} prompts read pruned, {100 * share:.1f}% of the visual tokens' FLOPs saved"


@dataclass(frozen=True)
class _Asked:
    """A batch on its way to the model: `seen` is what the vision part made of each prompt's images."""

    requests: Sequence[Request]
    prompts: Sequence[Prompt]
    seen: Sequence[Sequence[ImageFeatures]]


class Asker:
    """A model and its `Inputs`, pruned by `pruning` or, without one, untouched; `saved` counts what pruning did.

    Requests that show one image read it once (`prune`'s `reuse_prefix`, with `prefix_cache_bytes` of memory; a dense
    model then runs in the pruning engine, too, with nothing pruned), unless `prefix_cache_bytes` is None.
    """

    def __init__(
        self,
        model: Any,
        inputs: Inputs,
        pruning: PruningConfig | None = None,
        batch_size: int = 1,
        prefix_cache_bytes: int | None = CACHE_BYTES,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.inputs, self.pruning, self.batch_size = model, inputs, pruning, batch_size
        self.prefix_cache_bytes = prefix_cache_bytes
        self.saved, self.reused = Saved(), Reused()

    def generate(self, requests: Sequence[Request], progress: bool = False) -> list[str]:
        """Return the answers, in the order of `requests`, stripped and cut before the first stop string.

        Raises:
            RequestError: naming the request, or the requests of the batch, that failed; its cause is chained.

        """
        return self._each(requests, self._generate, progress)

    def likelihoods(self, requests: Sequence[Request], progress: bool = False) -> list[Likelihood]:
        """Return how likely each request's continuation is after its prompt, in the order of `requests`.

        The prompt is read pruned, by itself; the continuation's tokens follow one by one through the cache, as
        generated ones would, so that pruning never sees them. Raises `RequestError` as `generate` does.
        """
        return self._each(requests, self._likelihoods, progress)

    def _each(self, requests: Sequence[Request], ask: Callable, progress: bool) -> list[Any]:
        results: list[Any] = [None] * len(requests)
        bar = tqdm(total=len(requests), unit="request", disable=not progress, dynamic_ncols=True)
        with bar, torch.inference_mode():
            for window in self._windows(requests):
                looked: dict[int, ImageFeatures] = {}
                with self._pruned(window.shares) as session:
                    for batch in window.batches:
                        asked = [requests[place] for place in batch.places]
                        with _naming(asked):
                            found = ask(_Asked(asked, batch.prompts, self._look(batch.prompts, looked)), session)
                        for place, result in zip(batch.places, found, strict=True):
                            results[place] = result
                        for picture in batch.finished:
                            del looked[id(picture)]
                        bar.update(len(batch.places))
        return results

    def _windows(self, requests: Sequence[Request]) -> Iterator[Window]:
        """Yield all requests in windows, each of one way to generate."""
        names = [request.prompt for request in requests]
        for places in _alike(requests):
            yield from windows(places, names, lambda place: self._prepare(requests[place]), self.batch_size)

    @contextmanager
    def _pruned(self, shares: bool) -> Iterator[PruningSession | None]:
        """Prune what a window asks; with `shares` its prompts reuse what they have in common."""
        reuses = shares and self.prefix_cache_bytes is not None
        if self.pruning is None and not reuses:
            yield None
            return
        config = NoPruning() if self.pruning is None else self.pruning
        reuse = {"reuse_prefix": True, "prefix_cache_bytes": self.prefix_cache_bytes} if reuses else {}
        with prune(self.model, config, **reuse) as session:
            yield session
            if session.prefixes is not None:
                self.reused.add(session.prefixes.reused)

    def _look(self, prompts: Sequence[Prompt], looked: dict[int, ImageFeatures]) -> list[list[ImageFeatures]]:
        """Return what the vision part makes of each prompt's images; those in `looked` are not looked at again."""
        new = {id(picture): picture for prompt in prompts for picture in prompt.pictures if id(picture) not in looked}
        looked |= zip(new, self.inputs.encode_images(self.model, list(new.values())), strict=True)
        return [[looked[id(picture)] for picture in prompt.pictures] for prompt in prompts]

    def _prepare(self, request: Request) -> Prompt:
        with _naming([request]):
            conversation = request.read()
            text = self.inputs.prompt(conversation.turns)
            pictures = [self.inputs.prepare(image) for image in conversation.images]
            return Prompt(text, self.inputs.encode(conversation.turns), pictures)

    def _generate(self, asked: _Asked, session: PruningSession | None) -> list[str]:
        how = asked.requests[0].wanted
        until = [*how.until, *filter(None, [self.inputs.stop_string])]
        arguments = dict(how.arguments)
        if until:
            arguments["stopping_criteria"] = [UntilCriteria(until, self.inputs.tokenizer)]
        new = self._run(asked, session, arguments)
        return [cut(text, until).strip() for text in self.inputs.decode(new)]

    def _likelihoods(self, asked: _Asked, session: PruningSession | None) -> list[Likelihood]:
        rows = []
        for request, prompt in zip(asked.requests, asked.prompts, strict=True):
            with _naming([request]):
                rows.append(self._continuation(prompt, request.wanted))
        forced = Forced(rows)
        arguments = {"logits_processor": [forced], "max_new_tokens": forced.steps, "num_beams": 1, **_UNWEIGHTED}
        self._run(asked, session, arguments)
        return [
            Likelihood(sum(logprobs), len(logprobs), all(greedy))
            for logprobs, greedy in zip(forced.logprobs, forced.greedy, strict=True)
        ]

    def _continuation(self, prompt: Prompt, text: str) -> list[int]:
        """Token ids of `text` as they follow the prompt's; the space before it goes where a line break precedes it."""
        if prompt.text[-1:].isspace():
            text = text.lstrip(" ")
        # tokenised together, because a tokenizer may write the beginning of a text otherwise than its middle
        whole = self.inputs.tokenize(prompt.text + text)
        if whole[: len(prompt.row)] != prompt.row or len(whole) == len(prompt.row):
            raise ValueError(f"the continuation {text!r} is empty, or runs into the prompt's last token")
        return whole[len(prompt.row) :]

    def _run(self, asked: _Asked, session: PruningSession | None, arguments: dict[str, Any]) -> list[list[int]]:
        """Return the new token ids of each prompt; count what pruning did."""
        rows = [prompt.row for prompt in asked.prompts]
        for request, row, shown in zip(asked.requests, rows, asked.seen, strict=True):
            length, limit = self.inputs.length(row, shown), self.inputs.limit
            if limit is not None and length > limit:
                raise RequestError(f"{request.name}: the prompt has {length} tokens, the model takes {limit}")
        batch = self.inputs.collate(rows, asked.seen, self.model)
        if session is not None:
            session.traces.clear()
        pad = self.inputs.tokenizer.pad_token_id
        output = self.model.generate(**batch, **arguments, use_cache=True, pad_token_id=pad)
        if session is not None:
            beams = arguments["num_beams"]
            if len(session.traces) != beams * len(rows):
                raise RuntimeError(f"{len(rows)} prompts with {beams} beams left {len(session.traces)} traces")
            if self.pruning is not None:
                for trace in session.traces[::beams]:
                    self.saved.add(trace)
        return self.inputs.new_tokens(output, batch).tolist()


def _alike(requests: Sequence[Request]) -> list[list[int]]:
    """Places of requests that can share a batch, in order: those generated alike, or those that ask a likelihood."""

    def kind(place: int) -> str:
        wanted = requests[place].wanted
        return repr(wanted) if isinstance(wanted, Decoding) else ""

    return [list(group) for _, group in groupby(sorted(range(len(requests)), key=kind), key=kind)]


@contextmanager
def _naming(requests: Sequence[Request]) -> Iterator[None]:
    """Let whatever goes wrong inside say which requests it was about."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:  # of any kind: none is handled here, each goes on with the names that it lacks
        names = ", ".join(dict.fromkeys(request.name for request in requests))
        raise RequestError(f"{names}: {type(error).__name__}: {error}") from error
