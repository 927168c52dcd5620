"""From a prepared batch to LLaVA's answer lines: images seen once, generation, traces and times."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shortuuid
import torch
from tqdm import tqdm

from llava.eval.runner.batches import Batch
from llava.eval.runner.costs import STAGES
from llava.eval.runner.generate import Generator
from llava.eval.runner.questions import Question, Skipped
from llava.eval.runner.timing import ForwardTimer, Milliseconds
from llava.model.inputs import ImageFeatures, Inputs
from llava.model.pruning import PruningConfig
from llava.model.pruning.method import PromptState
from llava.model.pruning.prefix_cache import Reused

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

    With `prefix_cache_bytes`, questions about the same image in a unit of batches read it once (`Generator`).

    Sampling is seeded once per batch, with `seed` plus the index of the batch's first question: it can be repeated with
    the same batch size. At temperature 0 answers do not depend on the batch (up to rounding in half precision).

    On out-of-memory the batch size is halved, repeatedly if needed, for the rest of the run: `halved` says where.
    `spent`: milliseconds by stage since the block was entered, warm-up left out. `policies`: what the method remembers
    of each prompt of the last batch.
    """

    def __init__(
        self,
        model: Any,
        inputs: Inputs,
        model_id: str,
        config: PruningConfig | None,
        how: Generation,
        prefix_cache_bytes: int | None = None,
    ):
        self.model, self.inputs, self.model_id, self.config, self.how = model, inputs, model_id, config, how
        self._generator = Generator(model, inputs, config, prefix_cache_bytes)
        self.halved: list[dict[str, Any]] = []
        self.spent: Counter[str] = Counter()
        self.policies: list[PromptState] = []
        self._most: int | None = None
        self._most_images: int | None = None
        self._unit: int | None = None
        self._unreadable: dict[Path, str] = {}
        ends = model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list | tuple) else [ends]) - {None}

    def __enter__(self) -> Answerer:
        with ExitStack() as stack:
            stack.enter_context(self._generator)
            self._timer = stack.enter_context(ForwardTimer(self.model))
            self._exit = stack.pop_all()
        self._warm = False
        return self

    def __exit__(self, *exception) -> None:
        self._exit.close()

    def answer(self, batch: Batch) -> tuple[list[dict[str, Any]], list[Skipped]]:
        """Return the batch's answer lines, in order, and the questions that cannot be asked.

        Those are: an image that could not be read, a text that no prompt can hold, or a prompt longer than the model
        takes.
        """
        if batch.unit != self._unit:
            self._unit = batch.unit
            self._generator.images.clear()
            self._generator.forget()  # what is reused depends on the unit alone, not on what this process asked before
        if not self._warm:
            self._warm_up(batch)
        self._unreadable |= batch.errors
        self.policies = []
        self._see(batch)
        asked, rows, skipped = [], [], []
        for question, row in zip(batch.questions, batch.rows, strict=True):
            reasons = [batch.refused.get(question), *map(self._unreadable.get, question.paths)]
            reason = next(filter(None, reasons), None) or self._generator.too_long(row, self._shown(question))
            if reason:
                skipped.append(Skipped(question, reason))
            else:
                asked.append(question)
                rows.append(row)
        seen = [self._shown(question) for question in asked]
        lines = self._ask(asked, rows, seen) if asked else []
        for path in batch.finished:
            self._generator.images.pop(path, None)
        return lines, skipped

    def _warm_up(self, batch: Batch) -> None:
        """Ask once without looking at the clock: a process's first forward is slow for reasons of its own."""
        with suppress(torch.OutOfMemoryError):  # the batch itself will tell which question is too much
            self._ask_once(batch)
        self._timer.take()
        self._generator.forget(counts=True)

    @property
    def reused(self) -> Reused | None:
        """What the prefix cache did; None without one."""
        return self._generator.reused

    def _ask_once(self, batch: Batch) -> None:
        for question, row in zip(batch.questions, batch.rows, strict=True):
            if question in batch.refused or not batch.pictures.keys() >= set(question.paths):
                continue
            seen = self.inputs.encode_images(self.model, [batch.pictures[path] for path in question.paths])
            if not self._generator.too_long(row, seen):
                self._generator.generate([row], [seen], **self.how.arguments() | {"max_new_tokens": WARM_UP_TOKENS})
                self._warm = True
                return

    def _see(self, batch: Batch) -> None:
        """Run the vision part on the batch's new images; the unit's further batches may show them too."""
        paths = list(batch.pictures)
        while paths:
            part = paths[: self._most_images]
            try:
                self._generator.encode_images({path: batch.pictures[path] for path in part})
            except torch.OutOfMemoryError:
                self._most_images = self._half("images", str(part[0]), len(part))
            else:
                paths = paths[len(part) :]

    def _shown(self, question: Question) -> list[ImageFeatures]:
        """What the question shows, in order; nothing for an image that could not be read."""
        images = self._generator.images
        return [images[path] for path in question.paths if path in images]

    def _ask(
        self, questions: list[Question], rows: list[list[int]], seen: list[list[ImageFeatures]]
    ) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        while len(lines) < len(questions):
            part = slice(len(lines), len(lines) + (self._most or len(questions)))
            made = self._ask_together(questions[part], rows[part], seen[part])
            if made is None:
                self._halve(questions[part])
            else:
                lines += made
        return lines

    def _halve(self, questions: Sequence[Question]) -> None:
        """Ask at most half as many prompts at once from here on; raise where one was too many."""
        first = questions[0]
        where = first.where if len(questions) > 1 else f"{first.where}: question_id {first.question_id!r}"
        self._most = self._half("prompts", where, len(questions))

    def _half(self, what: str, where: str, count: int) -> int:
        """Say that `count` prompts or images, the first of them at `where`, were too many; return half of them."""
        self._free()
        if count == 1:
            raise torch.OutOfMemoryError(
                f"{where} alone does not fit into the device's memory; "
                "give a lower --max_new_tokens, a half-precision --dtype, or a device with more memory"
            )
        self.halved.append({"what": what, "where": where, "from": count, "to": count // 2})
        tqdm.write(
            f"warning: out of memory with {count} {what} at once ({where}); going on with {count // 2}", file=sys.stderr
        )
        return count // 2

    def _take(self) -> Milliseconds:
        spent = self._timer.take()
        self.spent.update({stage: getattr(spent, stage) for stage in STAGES})
        return spent

    def _free(self) -> None:
        self._take()
        self._generator.forget()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _ask_together(
        self, questions: list[Question], rows: list[list[int]], seen: list[list[ImageFeatures]]
    ) -> list[dict[str, Any]] | None:
        """Return the answer lines of prompts asked as one batch; None where memory ran out."""
        if self.how.temperature > 0:
            torch.manual_seed(self.how.seed + questions[0].index)
        try:
            tokens, traces = self._generator.generate(rows, seen, **self.how.arguments())
        except torch.OutOfMemoryError:
            return None
        output = tokens.tolist()
        self.policies += self._generator.policies[:: self.how.num_beams]
        spent = self._take()
        share = 1 / len(questions)
        milliseconds = {stage: round(share * getattr(spent, stage), 4) for stage in STAGES}
        return [
            {
                "question_id": question.question_id,
                "prompt": question.text,
                "text": text,
                "answer_id": self._answer_id(question),
                "model_id": self.model_id,
                "metadata": trace.summary()
                | {"generated_tokens": self._length(new), "milliseconds": milliseconds, "batch": len(questions)},
            }
            for question, text, new, trace in zip(questions, self.inputs.decode(output), output, traces, strict=True)
        ]

    def _answer_id(self, question: Question) -> str:
        """Return an id that names the question and how it was asked, the same in every run."""
        config = None if self.config is None else self.config.to_dict()
        seed = self.how.seed if self.how.temperature > 0 else None
        return shortuuid.uuid(name=json.dumps([self.model_id, config, self.how.arguments(), seed, *question.key]))

    def _length(self, tokens: list[int]) -> int:
        """Generated tokens up to and including the end token; what follows is padding."""
        return next((place for place, token in enumerate(tokens, start=1) if token in self._ends), len(tokens))
