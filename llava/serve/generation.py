"""Streaming of an answer: text, timing, stop words, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer


class AnswerStream(BaseStreamer):
    """Turn the tokens of one answer into text as they come.

    What was passed to `on_text`, joined, is `text`: the decoded tokens without special ones, stripped, cut before the
    first of the `stop_strings`. Held back until they are certain: whitespace at the end, a character whose bytes are
    not complete, the beginning of a stop string. `tokens` counts the new tokens, `first_at` is when (`perf_counter`)
    the first came, `stopped` whether a stop string did.
    """

    def __init__(
        self, tokenizer: Any, on_text: Callable[[str], None] | None = None, stop_strings: Sequence[str | None] = ()
    ):
        self.tokenizer = tokenizer
        self.on_text = on_text or (lambda text: None)
        self.stop_strings = [one for one in stop_strings if one]
        self.text = ""
        self.stopped = False
        self.first_at: float | None = None
        self._ids: list[int] = []
        self._prompt_is_next = True

    @property
    def tokens(self) -> int:
        """New tokens so far, the end token included."""
        return len(self._ids)

    @property
    def last_token(self) -> int | None:
        """Id of the newest token."""
        return self._ids[-1] if self._ids else None

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt's ids (first call) or one new token, int64 `[1]`; called by `generate`."""
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        if self.first_at is None:
            self.first_at = time.perf_counter()
        self._ids += value.flatten().tolist()
        self._emit(final=False)

    def end(self) -> None:
        """Flush the held-back text; called by `generate`."""
        self._emit(final=True)

    def _emit(self, final: bool) -> None:
        decoded = self.tokenizer.decode(self._ids, skip_special_tokens=True)
        ends = [decoded.index(stop) for stop in self.stop_strings if stop in decoded]
        self.stopped = bool(ends)
        if ends:
            decoded = decoded[: min(ends)]
        elif not final:
            decoded = decoded.rstrip("\ufffd")
            held_back = max((_overlap(decoded, stop) for stop in self.stop_strings), default=0)
            decoded = decoded[: len(decoded) - held_back]
        piece = decoded.strip()[len(self.text) :]
        if piece:
            self.text += piece
            self.on_text(piece)


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` are a beginning of `stop`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


class StopOnRequest(StoppingCriteria):
    """Stop every sample of a batch once an event is set."""

    def __init__(self, stop: threading.Event):
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Take new tokens int64 `[B, n]`; return bool `[B]`."""
        return torch.full((input_ids.shape[0],), self.stop.is_set(), dtype=torch.bool, device=input_ids.device)


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """Inside the block, the first Ctrl-C sets the event, so that `generate` stops after the token it is at.

    The second one raises KeyboardInterrupt at once (a prompt may take minutes to read). Outside the main thread,
    where Python delivers no signals, the block only provides the event.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(signum: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
