"""Stopping and forced decoding in `generate`: a task's stop strings, and given continuations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

_BYTES = 4  # a character may take that many tokens


class UntilCriteria(StoppingCriteria):
    """Stop a sample once its answer holds one of `words`; the prompt, where `generate` shows it, does not count.

    For one call of `generate`.
    """

    def __init__(self, words: Sequence[str], tokenizer: Any):
        self.words, self.tokenizer = tuple(words), tokenizer
        self._tail = _BYTES * (max(map(len, self.words)) + 1)
        self._start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Take ids `[B, n]`, the first call's last column being the first new token; return bool `[B]`."""
        if self._start is None:
            self._start = input_ids.shape[1] - 1
        tail = input_ids[:, max(self._start, input_ids.shape[1] - self._tail) :].tolist()
        texts = self.tokenizer.batch_decode(tail, skip_special_tokens=True)
        found = [any(word in text for word in self.words) for text in texts]
        return torch.tensor(found, device=input_ids.device)


def cut(text: str, words: Sequence[str]) -> str:
    """Return `text` up to the first of `words` in it."""
    return text[: min((place for word in words if (place := text.find(word)) >= 0), default=len(text))]


class Forced(LogitsProcessor):
    """Make `generate` write given continuations, and record the log-probability that the model gives each token.

    rows:
        token ids of each sample's continuation, at least one; finished samples repeat their last token
    logprobs, greedy:
        after the call, per sample: the log-probability of each token (float), and whether it was the likeliest

    For one call of `generate`, without beams.
    """

    def __init__(self, rows: Sequence[Sequence[int]]):
        self.rows = [list(row) for row in rows]
        self.steps = max(map(len, self.rows))
        self.logprobs: list[list[float]] = [[] for _ in self.rows]
        self.greedy: list[list[bool]] = [[] for _ in self.rows]
        self._step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Take the scores of the next token, `[B, vocabulary]`; leave one that is possible in each row."""
        wanted = [row[min(self._step, len(row) - 1)] for row in self.rows]
        column = torch.tensor(wanted, device=scores.device)[:, None]
        likely = torch.log_softmax(scores.float(), dim=-1).gather(1, column)[:, 0].tolist()
        best = (scores.argmax(dim=-1) == column[:, 0]).tolist()
        for sample, row in enumerate(self.rows):
            if self._step < len(row):
                self.logprobs[sample].append(likely[sample])
                self.greedy[sample].append(best[sample])
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, column, 0.0)
