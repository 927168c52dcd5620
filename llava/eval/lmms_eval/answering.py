"""Answers requests in batches: generated texts, and likelihoods of given continuations.

An error names the requests that it belongs to and is never turned into an answer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tqdm import tqdm

from llava.eval.lmms_eval.requests import Decoding, Likelihood, Request, RequestError
from llava.eval.lmms_eval.steering import Forced, UntilCriteria, cut
from llava.eval.runner.costs import Costs
from llava.eval.runner.generate import Generator
from llava.model.inputs import Inputs, ProcessedImage
from llava.model.pruning import PruningConfig
from llava.model.pruning.prefix_cache import CACHE_BYTES, Reused

WINDOW = 16
"""Batches whose prompts and images are prepared together: no more images than theirs are in memory."""

_UNWEIGHTED = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Prompt:
    """A prompt: text, token ids with one marker per image, image keys, and the sort key.

    `size`: number of images, whose tokens only the model may know, then tokens
    """

    text: str
    row: list[int]
    images: tuple[Hashable, ...]
    size: tuple[int, int]


class RequestAnswerer:
    """A model and its `Inputs`, pruned by `pruning` or, without one, untouched.

    Requests that show one image read it once (with `prefix_cache` bytes of memory; a dense model then runs in the
    pruning engine, too, with nothing pruned), unless `prefix_cache` is None.

    costs, reused:
        what the prompts that were read pruned cost, and what the prefix cache did, summed over all calls
    """

    def __init__(
        self,
        model: Any,
        inputs: Inputs,
        pruning: PruningConfig | None = None,
        batch_size: int = 1,
        prefix_cache: int | None = CACHE_BYTES,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.inputs, self.pruning, self.batch_size = model, inputs, pruning, batch_size
        self.prefix_cache = prefix_cache
        self.costs, self.reused = Costs(), Reused()

    def generate(self, requests: Sequence[Request], progress: bool = False) -> list[str]:
        """Return the answers, in the order of `requests`, stripped and cut before the first stop string.

        Raises:
            RequestError: naming the request, or the requests of the batch, that failed; its cause is chained.

        """
        return self._each(requests, self._generate, progress)

    def likelihoods(self, requests: Sequence[Request], progress: bool = False) -> list[Likelihood]:
        """Return the likelihood of each request's continuation after its prompt, in the order of `requests`.

        The prompt alone is pruned; the continuation's tokens pass through the cache one by one, like generated ones.
        Raises `RequestError` as `generate` does.
        """
        return self._each(requests, self._likelihoods, progress)

    def _each(self, requests: Sequence[Request], ask: Callable, progress: bool) -> list[Any]:
        results: list[Any] = [None] * len(requests)
        bar = tqdm(total=len(requests), unit="request", disable=not progress, dynamic_ncols=True)
        with bar:
            for places in self._windows(requests):
                prompts, pictures = self._prepare([requests[place] for place in places])
                batches, shares = arrange(prompts, self.batch_size)
                cache = self.prefix_cache if shares else None
                with Generator(self.model, self.inputs, self.pruning, cache) as generator:
                    for number, batch in enumerate(batches):
                        asked, shown = [requests[places[n]] for n in batch], [prompts[n] for n in batch]
                        with _naming(asked):
                            generator.encode_images({key: pictures[key] for one in shown for key in one.images})
                            found = ask(generator, asked, shown)
                        for n, result in zip(batch, found, strict=True):
                            results[places[n]] = result
                        later = {key for others in batches[number + 1 :] for n in others for key in prompts[n].images}
                        generator.images = {key: one for key, one in generator.images.items() if key in later}
                        bar.update(len(batch))
                    if generator.reused is not None:
                        self.reused.add(generator.reused)
        return results

    def _windows(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Yield indices of requests in windows; a window has one set of generation settings, or likelihoods alone."""

        def kind(place: int) -> str:
            wanted = requests[place].wanted
            return repr(wanted) if isinstance(wanted, Decoding) else ""

        width = WINDOW * self.batch_size
        for _, group in groupby(sorted(range(len(requests)), key=kind), key=kind):
            places = list(group)
            yield from (places[start : start + width] for start in range(0, len(places), width))

    def _prepare(self, requests: Sequence[Request]) -> tuple[list[Prompt], dict[Hashable, ProcessedImage]]:
        """Prepare a window's prompts, each conversation once, and their images by content."""
        made: dict[Hashable, Prompt] = {}
        pictures: dict[Hashable, ProcessedImage] = {}
        for request in requests:
            if request.prompt in made:
                continue
            with _naming([request]):
                conversation = request.read()
                prepared = [self.inputs.prepare(one) for one in conversation.media]
                row = self.inputs.encode(conversation.turns)
                images = tuple(map(content_key, prepared))
                size = len(prepared), len(row) + sum(len(picture.ids) for picture in prepared)
                made[request.prompt] = Prompt(self.inputs.prompt(conversation.turns), row, images, size)
                pictures |= {key: pictures.get(key, one) for key, one in zip(images, prepared, strict=True)}
        return [made[request.prompt] for request in requests], pictures

    def _generate(self, generator: Generator, requests: Sequence[Request], prompts: Sequence[Prompt]) -> list[str]:
        how = requests[0].wanted
        until = [*how.until, *filter(None, [self.inputs.stop_string])]
        arguments = dict(how.arguments)
        if until:
            arguments["stopping_criteria"] = [UntilCriteria(until, self.inputs.tokenizer)]
        new = self._run(generator, requests, prompts, arguments)
        return [cut(text, until).strip() for text in self.inputs.decode(new)]

    def _likelihoods(
        self, generator: Generator, requests: Sequence[Request], prompts: Sequence[Prompt]
    ) -> list[Likelihood]:
        rows = []
        for request, prompt in zip(requests, prompts, strict=True):
            with _naming([request]):
                rows.append(self._continuation(prompt, request.wanted))
        forced = Forced(rows)
        arguments = {"logits_processor": [forced], "max_new_tokens": forced.steps, "num_beams": 1, **_UNWEIGHTED}
        self._run(generator, requests, prompts, arguments)
        if not all(forced.logprobs):
            kind = type(self.model).__name__
            raise RequestError(f"{requests[0].name}: {kind}.generate takes no logits processor, which likelihoods need")
        return [
            Likelihood(sum(logprobs), len(logprobs), all(greedy))
            for logprobs, greedy in zip(forced.logprobs, forced.greedy, strict=True)
        ]

    def _continuation(self, prompt: Prompt, text: str) -> list[int]:
        """Token ids of `text` as they follow the prompt's; after a line break, its leading space is dropped."""
        if prompt.text[-1:].isspace():
            text = text.lstrip(" ")
        # tokenised together: a tokenizer may split the beginning of a text differently from its middle
        whole = self.inputs.tokenize(prompt.text + text)
        if whole[: len(prompt.row)] != prompt.row or len(whole) == len(prompt.row):
            raise ValueError(f"the continuation {text!r} is empty, or runs into the prompt's last token")
        return whole[len(prompt.row) :]

    def _run(
        self,
        generator: Generator,
        requests: Sequence[Request],
        prompts: Sequence[Prompt],
        arguments: dict[str, Any],
    ) -> list[list[int]]:
        """Return the new token ids of each prompt; add the pruning traces to the totals."""
        rows = [prompt.row for prompt in prompts]
        shown = [[generator.images[key] for key in prompt.images] for prompt in prompts]
        for request, row, images in zip(requests, rows, shown, strict=True):
            if reason := generator.too_long(row, images):
                raise RequestError(f"{request.name}: {reason}")
        new, traces = generator.generate(rows, shown, **arguments)
        if self.pruning is not None:
            for trace in traces:
                self.costs.add(trace.summary())
        return new.tolist()


def arrange(prompts: Sequence[Prompt], batch_size: int) -> tuple[list[list[int]], bool]:
    """Cut a window's prompts into batches: by length, or, where prompts share images, by image and then length.

    Returns the batches as numbers of prompts, and whether an image is shown by several prompts.
    """
    shown = Counter(key for prompt in prompts for key in set(prompt.images))
    shares = any(number > 1 for number in shown.values())
    first: dict[tuple[Hashable, ...], int] = {}
    for number, prompt in enumerate(prompts):
        first.setdefault(prompt.images, number)
    order = sorted(range(len(prompts)), key=lambda n: (first[prompts[n].images] if shares else 0, prompts[n].size))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)], shares


def content_key(picture: ProcessedImage) -> Hashable:
    """Return a content key of an image: ids, shapes, and 256-bit hashes of the arrays."""
    arrays = tuple(
        (name, array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
        for name, array in sorted(picture.arrays.items())
    )
    return tuple(picture.ids), arrays


@contextmanager
def _naming(requests: Sequence[Request]) -> Iterator[None]:
    """Turn any error inside into a `RequestError` that names the requests."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:  # of any kind: it is raised again, with the names
        names = ", ".join(dict.fromkeys(request.name for request in requests))
        raise RequestError(f"{names}: {type(error).__name__}: {error}") from error
