"""`Gallery`: the answers of a run on disk, broken and fixed ones first, each with its trace; the model does not run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from llava.cli import UserError
from llava.eval.metrics.answer_files import Answer, Key
from llava.eval.results.judging import judge_of
from llava.eval.runner.questions import Question, read_questions
from llava.eval.runner.run import Run
from llava.model.images import Limits, read_image
from llava.model.inputs import ImageFeatures, ProcessedImage, Turn
from llava.model.inputs.processor import Encoded

from .inspection import layout, token_states
from .service import ModelService

KINDS = ("broken", "fixed", "wrong", "changed", "right", "same", "answer")
"""In the order in which they are shown. Beside another run: answers that it scores higher or lower, other texts of the
same score, the same text; alone: wrong and right ones; without references: `changed`, `same` or `answer`."""
PER_PAGE = 24


@dataclass(frozen=True)
class Entry:
    """One answer: what kind it is, and what it is filtered by."""

    kind: str
    answer: Answer
    other: Answer | None
    score: float | None
    other_score: float | None
    filter_layer: int | None
    exit_layer: int | None
    kept: int | None

    def row(self, number: int) -> dict[str, Any]:
        """Return the entry as a line of the list, JSON-ready."""
        return {
            "number": number,
            "kind": self.kind,
            "question_id": self.answer.question_id,
            "prompt": self.answer.prompt,
            "text": self.answer.text,
            "against": None if self.other is None else self.other.text,
            "score": self.score,
            "against_score": self.other_score,
            "filter_layer": self.filter_layer,
            "exit_layer": self.exit_layer,
            "kept": self.kept,
        }


class Gallery:
    """The answers of `run`, compared with those of `against` where one is given.

    Raises `UserError`: runs of different questions.
    """

    def __init__(self, run: Run, against: Run | None, service: ModelService, limits: Limits):
        self.run, self.against, self.service, self.limits = run, against, service, limits
        if against is not None and run.settings.get("question_file") != against.settings.get("question_file"):
            raise UserError(f"{run.answers_file} and {against.answers_file} answer different question files")
        self.note: str | None = None
        self._questions = self._read_questions()
        self._lines: dict[Path, list[int]] = {}
        scores, other_scores = self._scores(run), self._scores(against)
        entries = [self._entry(key, scores.get(key), other_scores.get(key)) for key in run.answers]
        self.entries = sorted(entries, key=lambda one: KINDS.index(one.kind))

    def _read_questions(self) -> dict[Key, Question]:
        try:
            folder = Path(str(self.run.record.get("image_folder", "")))
            places = [folder, *(above / folder for above in self.run.answers_file.resolve().parents)]
            folder = next((place for place in places if place.is_dir()), folder)
            return {one.key: one for one in read_questions(self.run.question_file, folder)}
        except UserError as error:
            self.note = f"the run's images cannot be shown: {error}"
            return {}

    def _scores(self, run: Run | None) -> Mapping[Key, float]:
        if run is None:
            return {}
        try:
            return judge_of(run).scores(run)
        except ValueError as error:
            self.note = self.note or f"the answers are not scored: {error}"
            return {}

    def _entry(self, key: Key, score: float | None, other_score: float | None) -> Entry:
        answer, trace = self.run.answers[key], self.run.traces[key]
        other = None if self.against is None else self.against.answers.get(key)
        same = other is not None and answer.text.strip() == other.text.strip()
        if other is None:
            kind = "answer" if score is None else "right" if score >= 0.5 else "wrong"
        elif score is None or other_score is None or score == other_score:
            kind = "same" if same else "changed"
        else:
            kind = "broken" if score < other_score else "fixed"
        layers = (trace.get(name) for name in ("filter_layer", "exit_layer", "kept_tokens"))
        return Entry(kind, answer, other, score, other_score, *layers)

    def about(self) -> dict[str, Any]:
        """Return names, counts by kind, and the values that can be filtered by."""
        kinds = Counter(one.kind for one in self.entries)
        return {
            "run": self.run.name,
            "against": None if self.against is None else self.against.name,
            "kinds": {kind: kinds[kind] for kind in KINDS if kinds[kind]},
            "layers": sorted({one.filter_layer for one in self.entries if one.filter_layer is not None}),
            "most_kept": max((one.kept or 0 for one in self.entries), default=0),
            "note": self.note,
        }

    def page(
        self,
        kind: str | None = None,
        layer: int | None = None,
        low: int | None = None,
        high: int | None = None,
        page: int | None = None,
    ) -> dict[str, Any]:
        """Return the entries of a kind, filtered after `layer`, `low` to `high` tokens kept: `PER_PAGE` of them."""
        found = [
            (number, one)
            for number, one in enumerate(self.entries)
            if kind in (None, one.kind)
            and layer in (None, one.filter_layer)
            and (low is None or (one.kept is not None and one.kept >= low))
            and (high is None or (one.kept is not None and one.kept <= high))
        ]
        start = PER_PAGE * max(page or 0, 0)
        rows = [one.row(number) for number, one in found[start : start + PER_PAGE]]
        return {"total": len(found), "per_page": PER_PAGE, "rows": rows}

    def item(self, number: int) -> dict[str, Any]:
        """Return an entry with the traces of both answers and where its tokens lie.

        Raises:
            LookupError: no such entry.
            ValueError: its image cannot be read.

        """
        entry = self._at(number)
        made = entry.row(number) | {"images": 0, "layout": None, "note": self.note}
        made["run"] = self._side(entry.answer)
        made["other"] = None if entry.other is None else self._side(entry.other)
        question = self._questions.get(entry.answer.key)
        if question is None or not question.paths:
            return made
        if question.videos:
            return made | {"note": "frames of a run's videos are not drawn here: ask the question again"}
        made["images"] = len(question.paths)
        images = [read_image(path, self.limits) for path in question.paths]
        made["layout"], made["note"] = self._layout(question, images, made["run"]["trace"])
        if made["layout"] is not None:
            for side in (made["run"], made["other"]):
                if side is not None:
                    side["states"] = token_states(side["trace"], made["layout"]["visual"])
        return made

    def image(self, number: int, image: int) -> Image.Image:
        """Return an image of an entry's question; raises as `item` does."""
        question = self._questions.get(self._at(number).answer.key)
        if question is None:
            raise LookupError(f"{number} has no images")
        return read_image(question.paths[image], self.limits)

    def _at(self, number: int) -> Entry:
        if not 0 <= number < len(self.entries):
            raise LookupError(f"number {number} of {len(self.entries)}")
        return self.entries[number]

    def _side(self, answer: Answer) -> dict[str, Any]:
        """Return text and trace of an answer; the trace is read from its line, with the kept positions."""
        name, _, line = answer.where.rpartition(":")
        path = Path(name)
        if path not in self._lines:
            with open(path, "rb") as file:
                offsets = [0]
                for row in file:
                    offsets.append(offsets[-1] + len(row))
            self._lines[path] = offsets
        with open(path, "rb") as file:
            file.seek(self._lines[path][int(line) - 1])
            return {"text": answer.text, "trace": json.loads(file.readline())["metadata"]}

    def _layout(
        self, question: Question, images: Sequence[Image.Image], trace: Mapping[str, Any]
    ) -> tuple[dict[str, Any] | None, str | None]:
        """Return where the tokens lie, or None and why that is not known: such as a run of another model."""
        loaded = self.service.loaded
        with self.service.writing:
            row = loaded.inputs.encode([Turn(question.text, len(images))])
            processed = [loaded.inputs.prepare(image) for image in images]
        features = [self._unseen(one, trace["visual_tokens"] // len(images)) for one in processed]
        length = loaded.inputs.length(row, features)
        if length != trace["prompt_tokens"]:
            return (
                None,
                f"the run's prompt has {trace['prompt_tokens']} tokens, this model's {length}: another model's run",
            )
        return layout(loaded, images, row, features), self.note

    def _unseen(self, picture: ProcessedImage, visual: int) -> ImageFeatures:
        """Return the place of an image in a prompt as its encoder would leave it, without its features."""
        marker = self.service.loaded.inputs.marker
        if marker in picture.ids:
            first, count = picture.ids.index(marker), picture.ids.count(marker)
            return ImageFeatures(len(picture.ids), count, Encoded(picture, None), first)
        return ImageFeatures(visual, visual, Encoded(picture, None))
