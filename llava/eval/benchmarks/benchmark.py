"""What a benchmark is to this project: where its files lie, what is asked, how answers are scored or submitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Literal

from llava.eval.metrics.answer_files import ScoreError, field, read_jsonl
from llava.eval.metrics.scores import Scores

EVAL_ZIP = "LLaVA's eval.zip, linked in https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md"


@dataclass(frozen=True)
class Needed:
    """A file or folder that a benchmark needs.

    `path` is relative to the benchmark's folder; `where` says where it is to be had; `use` is what needs it: asking the
    questions ("run") or scoring the answers ("score").
    """

    path: str
    where: str
    use: Literal["run", "score"]

    def is_there(self, folder: Path) -> bool:
        """Whether the file, or the folder with something in it, is in the benchmark's `folder`."""
        path = folder / self.path
        return any(path.iterdir()) if path.is_dir() else path.is_file()


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; LLaVA's layout below a data folder (playground/data/eval).

    `folder`, `questions` (the question JSONL) and `images` (what its "image" paths are relative to) are relative paths;
    the loader asks the questions' texts as they stand: `suffix` is how each of them ends. `answers` is what kind of
    answer is asked for, `max_new_tokens` LLaVA's limit of it. `counts` are the numbers of questions that the known
    releases have, none if any number will do. `score(folder, answers, partial)` gives the scores of an answers file,
    `figure` names the one that people quote; `submit(folder, answers, upload)` writes the file that an evaluation
    server or grader takes, which ends in `upload_suffix`.
    """

    name: str
    title: str
    folder: str
    questions: str
    images: str
    suffix: str
    answers: Literal["yes or no", "short", "letter", "free"]
    max_new_tokens: int
    needs: tuple[Needed, ...]
    counts: tuple[int, ...] = ()
    figure: str | None = None
    unit: str = "%"
    score: Callable[[Path, Path, bool], Scores] | None = None
    submit: Callable[[Path, Path, Path], dict[str, Any]] | None = None
    upload_suffix: str = ".json"

    def at(self, data_dir: str | Path) -> Path:
        """The benchmark's folder below a data folder."""
        return Path(data_dir) / self.folder

    def missing(self, folder: Path, use: Literal["run", "score"] | None = None) -> list[Needed]:
        """What is not in the benchmark's folder; for one `use` only, if given."""
        return [need for need in self.needs if use in (None, need.use) and not need.is_there(folder)]

    def rehearse(self, folder: Path) -> None:
        """Score, and submit, one made-up answer to every question: what would fail after the run fails before it.

        Raises:
            ScoreError: questions and references do not belong together, one of them is malformed, a library that the
                submission needs is not installed, or the temporary folder is full.

        """
        try:
            self._rehearse(folder)
        except OSError as error:
            raise ScoreError(
                f"{self.title} cannot be rehearsed in the temporary folder {gettempdir()}: {error.strerror}; "
                "make room there, or name another one in TMPDIR"
            ) from error

    def _rehearse(self, folder: Path) -> None:
        with TemporaryDirectory() as temporary:
            answers = Path(temporary) / "answers.jsonl"
            with open(answers, "w", encoding="utf-8") as file:
                for where, row in read_jsonl(folder / self.questions, "question file"):
                    question_id, prompt = field(row, "question_id", where, (str, int)), field(row, "text", where)
                    file.write(json.dumps({"question_id": question_id, "prompt": prompt, "text": "A"}) + "\n")
            if self.score is not None:
                self.score(folder, answers, False)
            if self.submit is not None:
                self.submit(folder, answers, Path(temporary) / f"upload{self.upload_suffix}")

    def in_folder(self, folder: str) -> Benchmark:
        """The same benchmark in another folder, named after it: a set of one's own in the same format."""
        return replace(self, name=folder.lower(), title=f"{folder} ({self.title})", folder=folder, counts=())


def run_needs(benchmark_questions: str, questions_from: str, images: str, images_from: str) -> tuple[Needed, Needed]:
    """The two things that asking needs: the question file and the image folder."""
    return Needed(benchmark_questions, questions_from, "run"), Needed(images, images_from, "run")
