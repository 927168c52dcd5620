"""`Plan`: one benchmark under one pruning config, checked as far as that goes without the model's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.cli import GenerationOptions
from llava.eval.benchmarks import Benchmark
from llava.eval.runner.questions import Question, Skipped
from llava.model.pruning import PruningConfig


@dataclass(frozen=True)
class Plan:
    """What `Evaluator.plan` gives and `Evaluator.run` takes.

    benchmark, folder:
        what is asked and scored, and the folder of its files
    answers_file:
        where the answers go, a .jsonl; the run file and the times lie beside it
    config:
        the pruning config with every setting filled in; None is the untouched model. `filled_in` are the settings that
        were left open, as the model's depth gives them
    options:
        how the questions are asked; `max_new_tokens` is never None
    known, selected, skipped:
        all questions of the file; those of this run (--limit, the chunk) whose images are there; those left out
    settings:
        what the answers depend on; a run is continued only under the same ones
    """

    benchmark: Benchmark
    folder: Path
    answers_file: Path
    config: PruningConfig | None
    filled_in: dict[str, Any]
    options: GenerationOptions
    known: list[Question]
    selected: list[Question]
    skipped: list[Skipped]
    settings: dict[str, Any]

    @property
    def question_file(self) -> Path:
        """The benchmark's question file."""
        return self.folder / self.benchmark.questions

    @property
    def images(self) -> Path:
        """The folder that the questions' image paths are relative to."""
        return self.folder / self.benchmark.images
