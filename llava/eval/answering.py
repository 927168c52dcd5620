"""From a prepared batch to LLaVA's answer lines: visual features once an image, generation, traces and times."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shortuuid
import torch

from llava.eval.batches import Batch, left_padded
from llava.eval.questions import Question, Skipped
from llava.eval.timing import ForwardTimer
from llava.model.pruning import PruningConfig, PruningTrace, prune
from llava.model.pruning.flops import DecoderShape
from llava.model.pruning.policy import AttentionRule

WARM_UP_TOKENS = 2


@dataclass(frozen=True)
class Generation:
    """How answers are generated: greedy (or beams) at temperature 0, sampled above it, from `seed`."""

    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 128
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `generate`; sampling settings are None without sampling, against its warnings."""
        sample = self.temperature > 0
        return {
            "do_sample": sample,
            "temperature": self.temperature if sample else None,
            "top_p": self.top_p if sample else None,
            **({} if sample else {"top_k": None}),
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "use_cache": True,
        }


class Answerer:
    """Context manager that asks a loaded model, pruned when `config` is given and left untouched otherwise.

    Sampling is seeded once a batch, with `seed` plus the index of the batch's first question: it can be repeated with
    the same batch size. At temperature 0 answers do not depend on the batch (up to rounding in half precision).
    """

    def __init__(self, model: Any, tokenizer: Any, model_id: str, config: PruningConfig | None, how: Generation):
        self.model, self.tokenizer, self.model_id, self.config, self.how = model, tokenizer, model_id, config, how
        self._features: dict[Path, torch.Tensor] = {}
        self._unreadable: dict[Path, str] = {}
        self._shape = DecoderShape.of(model.config)
        ends = model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list | tuple) else [ends]) - {None}
        self._limit = model.config.tokenizer_model_max_length

    def __enter__(self) -> Answerer:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            self._session = None if self.config is None else stack.enter_context(prune(self.model, self.config))
            self._timer = stack.enter_context(ForwardTimer(self.model))
            self._exit = stack.pop_all()
        self._warm = False
        return self

    def __exit__(self, *exception) -> None:
        self._exit.close()

    def answer(self, batch: Batch) -> tuple[list[dict[str, Any]], list[Skipped]]:
        """Return the batch's answer lines, in order, and the questions that cannot be asked.

        Those are: an image that could not be read, or a prompt longer than the model takes.
        """
        self._unreadable |= batch.errors
        asked, rows, skipped = [], [], []
        for question, ids in zip(batch.questions, batch.input_ids, strict=True):
            reason = self._unreadable.get(question.path) or self._too_long(ids)
            if reason:
                skipped.append(Skipped(question, reason))
            else:
                asked.append(question)
                rows.append(ids)
        if asked and not self._warm and asked[0].path in batch.pixels:
            self._warm_up(batch.pixels[asked[0].path], rows[0])
        self._see(batch)
        return (self._ask(asked, rows) if asked else []), skipped

    def _warm_up(self, pixels: np.ndarray, ids: list[int]) -> None:
        """Ask once without looking at the clock: a process's first forward is slow for reasons of its own."""
        self._generate([ids], list(self._project([pixels])), max_new_tokens=WARM_UP_TOKENS)
        self._timer.take()
        self._warm = True

    def _see(self, batch: Batch) -> None:
        """Project the batch's new images; forget those that it does not show."""
        shown = {question.path for question in batch.questions}
        features = {path: seen for path, seen in self._features.items() if path in shown}
        if batch.pixels:
            features |= zip(batch.pixels, self._project(batch.pixels.values()), strict=True)
        self._features = features

    def _project(self, pixels: Iterable[np.ndarray]) -> torch.Tensor:
        return self.model.encode_images([torch.from_numpy(image) for image in pixels])

    def _too_long(self, ids: list[int]) -> str | None:
        length = len(ids) - 1 + self.model.visual_tokens_per_image
        if self._limit is not None and length > self._limit:
            return f"the prompt has {length} tokens with its image, the model takes {self._limit}"
        return None

    def _ask(self, questions: list[Question], rows: list[list[int]]) -> list[dict[str, Any]]:
        features = [self._features[question.path] for question in questions]
        if self.how.temperature > 0:
            torch.manual_seed(self.how.seed + questions[0].index)
        output = self._generate(rows, features).tolist()
        texts = self.tokenizer.batch_decode(output, skip_special_tokens=True)
        spent = self._timer.take()
        share = 1 / len(questions)
        milliseconds = {"prefill": spent.prefill, "decode": spent.decode, "vision": spent.vision}
        milliseconds = {stage: round(share * time, 4) for stage, time in milliseconds.items()}
        traces = self._traces(rows, features)
        return [
            {
                "question_id": question.question_id,
                "prompt": question.text,
                "text": text.strip(),
                "answer_id": shortuuid.uuid(),
                "model_id": self.model_id,
                "metadata": trace.summary()
                | {"generated_tokens": self._length(new), "milliseconds": milliseconds, "batch": len(questions)},
            }
            for question, text, new, trace in zip(questions, texts, output, traces, strict=True)
        ]

    def _generate(self, rows: list[list[int]], features: list[torch.Tensor], **changes: Any) -> torch.Tensor:
        if self._session is not None:
            self._session.traces.clear()
        ids, mask = left_padded(rows, self.tokenizer.pad_token_id)
        arguments = self.how.arguments() | {"pad_token_id": self.tokenizer.pad_token_id} | changes
        return self.model.generate(ids, image_features=features, attention_mask=mask, **arguments)

    def _traces(self, rows: list[list[int]], features: list[torch.Tensor]) -> list[PruningTrace]:
        """The newest prefill's trace of each prompt; beams prefill a prompt several times, alike."""
        if self._session is None:
            sizes = [(len(ids) - 1 + len(seen), len(seen)) for ids, seen in zip(rows, features, strict=True)]
            return [dense_trace(self._shape, self.model.dtype.itemsize, *size) for size in sizes]
        traces, copies = self._session.traces, self.how.num_beams
        if len(traces) != copies * len(rows):
            raise RuntimeError(f"{len(rows)} prompts with {copies} beams left {len(traces)} traces")
        return traces[::copies]

    def _length(self, tokens: list[int]) -> int:
        """Generated tokens up to and including the end token; what follows is padding."""
        return next((place for place, token in enumerate(tokens, start=1) if token in self._ends), len(tokens))


def dense_trace(shape: DecoderShape, itemsize: int, tokens: int, visual: int) -> PruningTrace:
    """Return the trace of a prompt of `tokens` tokens, `visual` of them visual, that runs whole through every layer."""
    layers = shape.layers
    return PruningTrace(
        shape=shape,
        itemsize=itemsize,
        tokens_per_layer=[tokens] * layers,
        visual_per_layer=[visual] * layers,
        rules=[AttentionRule()] * layers,
        filter_layer=None,
        kept=[],
        influence=[],
        exit_layer=None,
        kv_tokens_per_layer=[tokens] * layers,
        probes=[],
    )
