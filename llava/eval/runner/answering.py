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
from llava.eval.runner.questions import Question, Skipped
from llava.eval.runner.timing import ForwardTimer, Milliseconds
from llava.eval.runner.totals import STAGES
from llava.model.inputs import ImageFeatures, Inputs, ProcessedImage
from llava.model.pruning import PruningConfig, PruningTrace, prune
from llava.model.pruning.families import family_of
from llava.model.pruning.flops import DecoderShape
from llava.model.pruning.method import AttentionRule, PromptState
from llava.model.pruning.methods import NoPruning
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

    With `prefix_cache_bytes`, questions about the same image in a unit of batches read it once (`prune`'s
    `reuse_prefix`); a dense model then runs in the pruning engine, too, with nothing pruned.

    Sampling is seeded once a batch, with `seed` plus the index of the batch's first question: it can be repeated with
    the same batch size. At temperature 0 answers do not depend on the batch (up to rounding in half precision).

    A batch that the device's memory does not hold is halved, as often as it takes, and so are those after it: `halved`
    tells where. `spent`: milliseconds by stage since the block was entered, warm-up left out. `policies`: what the
    method remembers of each prompt of the last batch.
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
        self._room = prefix_cache_bytes
        self.halved: list[dict[str, Any]] = []
        self.spent: Counter[str] = Counter()
        self.policies: list[PromptState] = []
        self._most: int | None = None
        self._most_images: int | None = None
        self._unit: int | None = None
        self._seen: dict[Path, ImageFeatures] = {}
        self._unreadable: dict[Path, str] = {}
        self._shape = DecoderShape.of(family_of(model).decoder(model).config)
        ends = model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list | tuple) else [ends]) - {None}

    def __enter__(self) -> Answerer:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            self._session = None
            if self.config is not None or self._room is not None:
                config = NoPruning() if self.config is None else self.config
                reuse = {} if self._room is None else {"reuse_prefix": True, "prefix_cache_bytes": self._room}
                self._session = stack.enter_context(prune(self.model, config, **reuse))
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
            self._unit, self._seen = batch.unit, {}
            self._forget()
        if not self._warm:
            self._warm_up(batch)
        self._unreadable |= batch.errors
        self.policies = []
        self._see(batch)
        asked, rows, skipped = [], [], []
        for question, row in zip(batch.questions, batch.rows, strict=True):
            reasons = [batch.refused.get(question), *map(self._unreadable.get, question.paths)]
            reason = next(filter(None, reasons), None) or self._too_long(row, self._shown(question))
            if reason:
                skipped.append(Skipped(question, reason))
            else:
                asked.append(question)
                rows.append(row)
        seen = [self._shown(question) for question in asked]
        lines = self._ask(asked, rows, seen) if asked else []
        for path in batch.finished:
            self._seen.pop(path, None)
        return lines, skipped

    def _warm_up(self, batch: Batch) -> None:
        """Ask once without looking at the clock: a process's first forward is slow for reasons of its own."""
        with suppress(torch.OutOfMemoryError):  # the batch itself will tell which question is too much
            self._ask_once(batch)
        self._timer.take()
        self._forget()
        if self.reused is not None:
            self._session.prefixes.reused = Reused()

    def _forget(self) -> None:
        """Forget prefixes: what is reused depends on the unit alone, and not on what this process asked before."""
        if self._session is not None and self._session.prefixes is not None:
            self._session.prefixes.clear()

    @property
    def reused(self) -> Reused | None:
        """What reuse of prefixes did; None without it."""
        return None if self._session is None or self._session.prefixes is None else self._session.prefixes.reused

    def _ask_once(self, batch: Batch) -> None:
        for question, row in zip(batch.questions, batch.rows, strict=True):
            if question in batch.refused or not batch.pictures.keys() >= set(question.paths):
                continue
            seen = self.inputs.encode_images(self.model, [batch.pictures[path] for path in question.paths])
            if not self._too_long(row, seen):
                self._generate([row], [seen], max_new_tokens=WARM_UP_TOKENS)
                self._warm = True
                return

    def _see(self, batch: Batch) -> None:
        """Look at the batch's new images; the unit's further batches may show them too."""
        paths = list(batch.pictures)
        while paths:
            part = paths[: self._most_images]
            seen = self._look([batch.pictures[path] for path in part])
            if seen is None:
                self._most_images = self._half("images", str(part[0]), len(part))
            else:
                self._seen |= zip(part, seen, strict=True)
                paths = paths[len(part) :]

    def _look(self, pictures: Sequence[ProcessedImage]) -> list[ImageFeatures] | None:
        """Return what the vision tower makes of some images; None where memory ran out."""
        try:
            return self.inputs.encode_images(self.model, pictures)
        except torch.OutOfMemoryError:
            return None

    def _shown(self, question: Question) -> list[ImageFeatures]:
        """What the question shows, in order; nothing for an image that could not be read."""
        return [self._seen[path] for path in question.paths if path in self._seen]

    def _too_long(self, row: list[int], seen: list[ImageFeatures]) -> str | None:
        length, limit = self.inputs.length(row, seen), self.inputs.limit
        if limit is not None and length > limit:
            image = " with its image" if seen else ""
            return f"the prompt has {length} tokens{image}, the model takes {limit}"
        return None

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
        self._forget()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _ask_together(
        self, questions: list[Question], rows: list[list[int]], seen: list[list[ImageFeatures]]
    ) -> list[dict[str, Any]] | None:
        """Return the answer lines of prompts asked as one batch; None where memory ran out."""
        if self.how.temperature > 0:
            torch.manual_seed(self.how.seed + questions[0].index)
        try:
            output = self._generate(rows, seen).tolist()
        except torch.OutOfMemoryError:
            return None
        if self._session is not None:
            self.policies += self._session.policies[:: self.how.num_beams]
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
            for question, text, new, trace in zip(
                questions, self.inputs.decode(output), output, self._traces(rows, seen), strict=True
            )
        ]

    def _answer_id(self, question: Question) -> str:
        """Return an id that names the question and how it was asked, the same in every run."""
        config = None if self.config is None else self.config.to_dict()
        seed = self.how.seed if self.how.temperature > 0 else None
        return shortuuid.uuid(name=json.dumps([self.model_id, config, self.how.arguments(), seed, *question.key]))

    def _generate(self, rows: list[list[int]], seen: list[list[ImageFeatures]], **changes: Any) -> torch.Tensor:
        if self._session is not None:
            self._session.traces.clear()
        batch = self.inputs.collate(rows, seen, self.model)
        arguments = self.how.arguments() | {"pad_token_id": self.inputs.tokenizer.pad_token_id} | changes
        return self.inputs.new_tokens(self.model.generate(**batch, **arguments), batch)

    def _traces(self, rows: list[list[int]], seen: list[list[ImageFeatures]]) -> list[PruningTrace]:
        """The newest prefill's trace of each prompt; beams prefill a prompt several times, alike."""
        if self._session is None:
            sizes = [
                (self.inputs.length(row, shown), sum(image.visual for image in shown))
                for row, shown in zip(rows, seen, strict=True)
            ]
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
