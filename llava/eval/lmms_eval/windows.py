"""Which requests are prepared together, and asked together: windows of neighbours, cut into batches.

An image that several requests of a window show is one `ProcessedImage`, and those requests follow each other: what the model
makes of the image, and of the prompts' beginning, then serves all of them. Elsewhere batches are of similar lengths.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llava.model.inputs import ProcessedImage

WINDOW = 16
"""Batches whose prompts and images are prepared together: no more images than theirs are in memory."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as text, as a row of token ids with a marker an image, and its images."""

    text: str
    row: list[int]
    pictures: list[ProcessedImage]

    @property
    def size(self) -> tuple[int, int]:
        """What prompts are sorted by: images, whose tokens only the model may know, then tokens."""
        return len(self.pictures), len(self.row) + sum(len(picture.ids) for picture in self.pictures)


@dataclass(frozen=True)
class Batch:
    """Requests by their places, and their prompts; `finished`: pictures that no later batch of the window shows."""

    places: list[int]
    prompts: list[Prompt]
    finished: list[ProcessedImage]


@dataclass(frozen=True)
class Window:
    """Batches in the order in which they are asked; `shares`: whether an image is shown by several requests."""

    batches: list[Batch]
    shares: bool


def windows(
    places: Sequence[int], names: Sequence[Hashable], prepare: Callable[[int], Prompt], batch_size: int
) -> Iterator[Window]:
    """Yield `places` in windows of at most `WINDOW` batches of `batch_size`.

    names: of every place, what its prompt is called; `prepare` is called once a window for each name
    """
    width = WINDOW * batch_size
    for start in range(0, len(places), width):
        here = places[start : start + width]
        made: dict[Hashable, Prompt] = {}
        known: dict[Hashable, ProcessedImage] = {}
        for place in here:
            if names[place] not in made:
                made[names[place]] = _unify(prepare(place), known)
        yield _window(here, [made[names[place]] for place in here], batch_size)


def _window(places: Sequence[int], prompts: Sequence[Prompt], batch_size: int) -> Window:
    shown = Counter(name for prompt in prompts for name in set(_images(prompt)))
    shares = any(number > 1 for number in shown.values())
    first: dict[Any, int] = {}
    for number, prompt in enumerate(prompts):
        first.setdefault(_images(prompt), number)

    def turn(number: int) -> tuple:
        prompt = prompts[number]
        return (first[_images(prompt)], prompt.size) if shares else prompt.size

    order = sorted(range(len(places)), key=turn)
    batches = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        asked = [prompts[number] for number in chosen]
        pictures = {id(picture): picture for prompt in asked for picture in prompt.pictures}
        shown.subtract(name for prompt in asked for name in set(_images(prompt)))
        finished = [picture for name, picture in pictures.items() if not shown[name]]
        batches.append(Batch([places[number] for number in chosen], asked, finished))
    return Window(batches, shares)


def _images(prompt: Prompt) -> tuple[int, ...]:
    return tuple(map(id, prompt.pictures))


def _unify(prompt: Prompt, known: dict[Hashable, ProcessedImage]) -> Prompt:
    """Return the prompt with `known` pictures in place of equal ones; the others become known."""
    pictures = [known.setdefault(_content(picture), picture) for picture in prompt.pictures]
    return Prompt(prompt.text, prompt.row, pictures)


def _content(picture: ProcessedImage) -> Hashable:
    """Return what is equal for equal pictures, and 256 bits of a hash apart for others."""
    arrays = tuple(
        (name, array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
        for name, array in sorted(picture.arrays.items())
    )
    return tuple(picture.ids), arrays
