"""From a prepared batch to LLaVA's answer lines: images encoded once, generation, traces and times."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import shortuuid
import torch
from tqdm import tqdm

from llava.cli import GenerationOptions
from llava.eval.runner.batches import Batch
from llava.eval.runner.costs import STAGES
from llava.eval.runner.generate import Generator
from llava.eval.runner.questions import Question, Skipped
from llava.eval.runner.timing import ForwardTimer, Milliseconds
from llava.model.inputs import ImageFeatures
from llava.model.loaded import LoadedModel
from llava.model.pruning import PruningConfig
from llava.model.pruning.method import PromptState
from llava.model.pruning.prefix_cache import Reused

WARM_UP_TOKENS = 2


class Answerer:
    """Context manager that answers batches with a loaded model: pruned by `config`, dense without one.

    With `prefix_cache` (bytes) questions about one image in an image group compute their common prefix once; dense then
    runs in the pruning engine, too.

    Sampling is seeded per batch with `seed` + the index of its first question, so it is reproducible at the same batch
    size. At temperature 0 answers do not depend on the batch (up to rounding in half precision).

    On out-of-memory the batch size is halved, repeatedly if needed, for the rest of the run; `halved` says where.
    `spent`: milliseconds per stage since the block was entered, without the warm-up. `policies`: the method's
    `PromptState` per prompt of the last batch.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: PruningConfig | None,
        options: GenerationOptions,
        prefix_cache: int | None = None,
    ):
        self.loaded, self.config, self.options = loaded, config, options
        self.halved: list[dict[str, Any]] = []
        self.spent: Counter[str] = Counter()
        self.policies: list[PromptState] = []
        self._generator = Generator(loaded.model, loaded.inputs, config, prefix_cache)
        self._images: dict[Path, ImageFeatures] = self._generator.images
        self._most: int | None = None
        self._most_images: int | None = None
        self._image_group: int | None = None
        self._unreadable: dict[Path, str] = {}
        ends = loaded.model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list | tuple) else [ends]) - {None}

    def __enter__(self) -> Answerer:
        with ExitStack() as stack:
            stack.enter_context(self._generator)
            self._timer = stack.enter_context(ForwardTimer(self.loaded.model))
            self._exit = stack.pop_all()
        self._warm = False
        return self

    def __exit__(self, *exception) -> None:
        self._exit.close()

    @property
    def reused(self) -> Reused | None:
        """Statistics of the prefix cache; None without one."""
        return self._generator.reused

    def answer(self, batch: Batch) -> tuple[list[dict[str, Any]], list[Skipped]]:
        """Return the batch's answer lines in order, and the questions that cannot be answered.

        Those are: an image that could not be read, a text that no prompt can hold, or a prompt longer than the model
        takes.
        """
        if batch.image_group != self._image_group:  # what is reused depends on it alone
            self._image_group = batch.image_group
            self._images.clear()
            self._generator.forget()
        if not self._warm:
            self._warm_up(batch)
        self._unreadable |= batch.errors
        self.policies = []
        self._encode(batch)
        asked, rows, skipped = [], [], []
        for question, row in zip(batch.questions, batch.rows, strict=True):
            reasons = [batch.refused.get(question), *map(self._unreadable.get, question.paths)]
            reason = next(filter(None, reasons), None) or self._generator.too_long(row, self._shown(question))
            if reason:
                skipped.append(Skipped(question, reason))
            else:
                asked.append(question)
                rows.append(row)
        lines = self._ask(asked, rows, [self._shown(question) for question in asked])
        for path in batch.finished:
            self._images.pop(path, None)
        return lines, skipped

    def _warm_up(self, batch: Batch) -> None:
        """Answer once untimed, since a process's first forward is slow."""
        with suppress(torch.OutOfMemoryError):  # the batch itself will show which question is too much
            self._ask_once(batch)
        self._timer.take()
        self._generator.forget(counts=True)

    def _ask_once(self, batch: Batch) -> None:
        inputs, model = self.loaded.inputs, self.loaded.model
        for question, row in zip(batch.questions, batch.rows, strict=True):
            if question in batch.refused or not batch.pictures.keys() >= set(question.paths):
                continue
            shown = inputs.encode_images(model, [batch.pictures[path] for path in question.paths])
            if not self._generator.too_long(row, shown):
                arguments = generate_arguments(self.options) | {"max_new_tokens": WARM_UP_TOKENS}
                self._generator.generate([row], [shown], **arguments)
                self._warm = True
                return

    def _encode(self, batch: Batch) -> None:
        """Encode the batch's new images; later batches of the image group reuse the features."""
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
        """The question's encoded images in order, without unreadable ones."""
        return [self._images[path] for path in question.paths if path in self._images]

    def _ask(
        self, questions: list[Question], rows: list[list[int]], shown: list[list[ImageFeatures]]
    ) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        while len(lines) < len(questions):
            part = slice(len(lines), len(lines) + (self._most or len(questions)))
            made = self._ask_together(questions[part], rows[part], shown[part])
            if made is None:
                first, count = questions[part][0], len(questions[part])
                where = first.where if count > 1 else f"{first.where}: question_id {first.question_id!r}"
                self._most = self._half("prompts", where, count)
            else:
                lines += made
        return lines

    def _half(self, what: str, where: str, count: int) -> int:
        """Warn that `count` prompts or images from `where` on ran out of memory; return half of the count."""
        self._take()
        self._generator.forget()
        if self.loaded.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if count == 1:
            raise torch.OutOfMemoryError(
                f"{where} alone does not fit into the device's memory; "
                "give a lower --max-new-tokens, a half-precision --dtype, or a device with more memory"
            )
        self.halved.append({"what": what, "where": where, "from": count, "to": count // 2})
        tqdm.write(
            f"warning: out of memory with {count} {what} at once ({where}); continuing with {count // 2}",
            file=sys.stderr,
        )
        return count // 2

    def _take(self) -> Milliseconds:
        spent = self._timer.take()
        self.spent.update({stage: getattr(spent, stage) for stage in STAGES})
        return spent

    def _ask_together(
        self, questions: list[Question], rows: list[list[int]], shown: list[list[ImageFeatures]]
    ) -> list[dict[str, Any]] | None:
        """Return the answer lines of one batch of prompts; None on out-of-memory."""
        if self.options.temperature > 0:
            torch.manual_seed(self.options.seed + questions[0].index)
        try:
            tokens, traces = self._generator.generate(rows, shown, **generate_arguments(self.options))
            output = tokens.tolist()
        except torch.OutOfMemoryError:
            return None
        self.policies += self._generator.policies[:: self.options.num_beams]
        spent = self._take()
        share = 1 / len(questions)
        milliseconds = {stage: round(share * getattr(spent, stage), 4) for stage in STAGES}
        texts = self.loaded.inputs.decode(output)
        return [
            {
                "question_id": question.question_id,
                "prompt": question.text,
                "text": text,
                "answer_id": self._answer_id(question),
                "model_id": self.loaded.name,
                "metadata": trace.summary()
                | {"generated_tokens": self._length(new), "milliseconds": milliseconds, "batch": len(questions)},
            }
            for question, text, new, trace in zip(questions, texts, output, traces, strict=True)
        ]

    def _answer_id(self, question: Question) -> str:
        """Return a deterministic id of the question and the settings."""
        config = None if self.config is None else self.config.to_dict()
        seed = self.options.seed if self.options.temperature > 0 else None
        named = [self.loaded.name, config, generate_arguments(self.options), seed, *question.key]
        return shortuuid.uuid(name=json.dumps(named))

    def _length(self, tokens: Sequence[int]) -> int:
        """Number of generated tokens up to and including the end token, without padding."""
        return next((place for place, token in enumerate(tokens, start=1) if token in self._ends), len(tokens))


def generate_arguments(options: GenerationOptions) -> dict[str, Any]:
    """Keyword arguments of `generate`: greedy (or beams) at temperature 0, sampled above it.

    Sampling settings are None without sampling, against transformers' warnings about a checkpoint's own.
    """
    sample = options.temperature > 0
    return {
        "do_sample": sample,
        "temperature": options.temperature if sample else None,
        "top_p": options.top_p if sample else None,
        **({} if sample else {"top_k": None}),
        "num_beams": options.num_beams,
        "max_new_tokens": options.max_new_tokens,
        "use_cache": True,
    }
