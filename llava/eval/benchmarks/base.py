"""`Benchmark`: its files, the judge of one answer, and the aggregation of judgements into scores.

A benchmark is one file of this folder and one `Benchmark` in it. To score is always the same: `read` the references,
`judge` each answer against its own, aggregate. A new one needs `name`, `questions`, `images`, `references`, `read` and
`judge`; a user's own data needs no file here (`llava.eval.benchmarks.question_set`, docs/your-own-data.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any, Literal

from llava.cli import UserError
from llava.eval.metrics import answer_files
from llava.eval.metrics.answer_files import Answer, Key, read_answers, read_jsonl
from llava.eval.metrics.scores import Groups, Scores, accuracy_of, group_accuracies, render_scores

if TYPE_CHECKING:
    from llava.eval.prepare.layout import Layout

EVAL_ZIP = "LLaVA's eval.zip, linked in https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md"

Term = dict[Key, tuple[float, float]]
"""Question → (numerator, denominator); a quoted score is 100 · Σ over its terms of Σ numerators / Σ denominators."""


@dataclass(frozen=True)
class Needed:
    """A file or folder that a benchmark needs.

    `path`: relative to the benchmark's folder; `where`: its source; `use`: needed for answering ("run") or for scoring
    ("score").
    """

    path: str
    where: str
    use: Literal["run", "score"]

    def is_there(self, folder: Path) -> bool:
        """Whether the file, or the folder with something in it, is in the benchmark's `folder`."""
        path = folder / self.path
        return any(path.iterdir()) if path.is_dir() else path.is_file()


@dataclass(frozen=True)
class Conversion:
    """Published rows that become question, reference and image files (`llava.eval.prepare`).

    `patterns`: names of the files, .parquet or .tsv; the first pattern that matches any file counts. `columns` must be
    there, `optional` ones are read where they are (all three: words with spaces between them). `write(rows, layout)`
    fills the benchmark's folder.
    """

    patterns: str
    columns: str
    write: Callable[[Iterable[Mapping[str, Any]], Layout], None]
    optional: str = ""


def _question_id(answer: Answer) -> Hashable:
    return answer.question_id


@dataclass(frozen=True)
class References:
    """The references of a benchmark's questions.

    `of` maps a key to what `Benchmark.judge` takes; `keys` has the key of every question, repeated if it is asked
    again (default: those of `of`); `key_of` finds the key of an answer (default: its question id).
    """

    of: Mapping[Hashable, Any]
    keys: Sequence[Hashable] | None = None
    key_of: Callable[[Answer], Hashable] = _question_id


@dataclass(frozen=True)
class Judged:
    """One scored answer: the question's key, the text, the reference, and the score in [0, 1]."""

    key: Hashable
    text: str
    reference: Any
    value: float


Figures = tuple[str, dict[str, Any], Groups]
"""(key of the quoted score, scores by key with "accuracy" among them, groups)."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark in LLaVA's layout: `folder` below a data folder such as playground/data/eval.

    Files: `questions` (the question JSONL; its texts are asked as they stand, each ends with `suffix`), `images` (what
    its "image" paths are relative to) and `references` are paths relative to `folder`; `questions_from`, `images_from`
    and `references_from` say where to get them, `reference_files` lists the files if they are not `references` itself.
    `counts` are the numbers of questions of the known releases, none if any number will do.

    Scoring: `read(questions, references)` reads the references, `judge(text, reference)` says what an answer is worth,
    in [0, 1]; None if only a server can tell. Optional: `groups(reference)` yields (kind, name) of the groups that a
    question belongs to; `aggregate(judged, references)` replaces the mean; `has_own_score(reference)` is False for a
    question that has no score of its own; `quoted` and `stratum` are explained at the methods that use them. `figure`
    names the score that people quote, in `unit`; `labels` renames scores in the table.

    `submit(folder, answers, upload)` writes the file that a server or grader takes, ending in `upload_suffix`.
    `conversions`, `derived` (a published file and the function that makes the question file of it) and `extra_file`
    (name in an archive → path in the folder, or None) are for `llava.eval.prepare`. `kind` is the benchmark whose
    format and rules these are (of gqa_mini: gqa); `find_benchmark(spec)` finds the benchmark again; `hint` is what its
    name may have meant.
    """

    name: str
    title: str
    folder: str
    questions: str
    images: str
    max_new_tokens: int = 128
    suffix: str = ""
    questions_from: str = ""
    images_from: str = ""
    references_from: str = ""
    reference_files: tuple[str, ...] | None = None
    counts: tuple[int, ...] = ()
    references: str | None = None
    read: Callable[[Path, Path], References] | None = None
    judge: Callable[[str, Any], float] | None = None
    groups: Callable[[Any], Iterable[tuple[str, str]]] = lambda reference: ()
    aggregate: Callable[[Sequence[Judged], References], Figures] | None = None
    has_own_score: Callable[[Any], bool] = lambda reference: True
    quoted: Callable[[Mapping[Key, float]], dict[str, list[Term]]] | None = None
    stratum: Callable[[Key], str] = lambda key: ""
    figure: str | None = "accuracy"
    unit: str = "%"
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    submit: Callable[[Path, Path, Path], dict[str, Any]] | None = None
    upload_suffix: str = ".json"
    conversions: tuple[Conversion, ...] = ()
    derived: tuple[str, Callable[[Layout], None]] | None = None
    extra_file: Callable[[str], str | None] | None = None
    kind: str = ""
    hint: str = field(default="", compare=False)
    spec: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", self.kind or self.name)
        if self.spec is None:
            object.__setattr__(self, "spec", self.name)

    def at(self, data_dir: str | Path) -> Path:
        """The benchmark's folder below a data folder."""
        return Path(data_dir).expanduser() / self.folder

    def in_folder(self, folder: str) -> Benchmark:
        """The same benchmark in another folder, named after it: a user's set in the same format."""
        name, title = folder.lower(), f"{folder} ({self.title})"
        return replace(self, name=name, title=title, folder=folder, counts=(), spec=folder)

    @property
    def needs(self) -> tuple[Needed, ...]:
        """The files that running and scoring need."""
        asked = ((self.questions, self.questions_from), (self.images, self.images_from))
        files = self.reference_files if self.reference_files is not None else filter(None, (self.references,))
        scored = (Needed(file, self.references_from, "score") for file in files)
        return (*(Needed(path, where, "run") for path, where in asked), *scored)

    def missing(self, folder: Path, use: Literal["run", "score"] | None = None) -> list[Needed]:
        """The needed files that the benchmark's folder lacks; for one `use` only, if given."""
        return [need for need in self.needs if use in (None, need.use) and not need.is_there(folder)]

    def require(self, folder: Path) -> None:
        """Raise `UserError` unless the folder has all files that running and scoring need."""
        if missing := self.missing(folder):
            details = "; ".join(f"{folder / need.path} (from: {need.where})" for need in missing)
            raise UserError(f"{self.title} cannot run{self.hint}; missing: {details}")

    def references_at(self, folder: Path) -> Path:
        """Where the references are; `UserError` if the benchmark has none."""
        if self.judge is None or self.references is None:
            server = "; its answers go to a server (llava.eval.score --upload writes the file for it)"
            raise UserError(f"{self.title} has no references to score with{server if self.submit else ''}")
        return folder / self.references

    def score(self, folder: Path, answers: Path, partial: bool = False) -> Scores:
        """The scores of an answers file.

        Args:
            folder: the benchmark's folder.
            answers: JSONL with "question_id", "text" and, for some benchmarks, "prompt".
            partial: score the answered questions only instead of raising when some are missing, duplicate or unknown.

        Raises:
            UserError: unreadable or malformed input; answers that do not cover the questions, unless `partial`.

        """
        return self.score_files(folder / self.questions, self.references_at(folder), answers, partial)

    def score_files(self, questions: Path, references: Path, answers: Path, partial: bool = False) -> Scores:
        """As `score`, with the files named."""
        known = self.read(questions, references)
        given = read_answers(answers)
        keys = [known.key_of(answer) for answer in given]
        wheres = [(key, answer.where) for key, answer in zip(keys, given, strict=True)]
        used, coverage = answer_files.match(known.of if known.keys is None else known.keys, wheres, partial)
        judged = []
        for place in used:
            text, reference = given[place].text, known.of[keys[place]]
            judged.append(Judged(keys[place], text, reference, self.judge(text, reference)))
        figure, values, groups = (self.aggregate or self._mean)(judged, known)
        counts = coverage.to_dict() | {"empty": sum(not one.text.strip() for one in judged)}
        return Scores(benchmark=self.kind, figure=figure, **values, groups=groups, **counts)

    def _mean(self, judged: Sequence[Judged], known: References) -> Figures:
        groups = [(kind, name, one.value) for one in judged for kind, name in self.groups(one.reference)]
        accuracy = accuracy_of([one.value for one in judged])["accuracy"]
        return "accuracy", {"accuracy": accuracy}, group_accuracies(groups)

    def question_scores(self, answers: Iterable[Answer], questions: Path, references: Path) -> dict[Key, float]:
        """The score of each answer in [0, 1]; their mean is the score "accuracy".

        Answers to questions that the references do not have, or that do not count (`has_own_score`), are left out.

        Raises `UserError`: unreadable or malformed references; an answer whose question cannot be found.
        """
        known = self.read(questions, references)
        keyed = ((answer, known.key_of(answer)) for answer in answers)
        return {
            answer.key: float(self.judge(answer.text, known.of[key]))
            for answer, key in keyed
            if key in known.of and self.has_own_score(known.of[key])
        }

    def quoted_terms(self, scores: Mapping[Key, float]) -> dict[str, list[Term]]:
        """The quoted scores by name, each as sums over questions that the bootstrap can resample.

        `scores`: what each question's answer is worth. A score is 100 · Σ_t Σ numerators / Σ denominators over its
        terms t; "accuracy" (one term) is always there, `quoted` adds others. Resampling draws within
        `stratum(question)`.
        """
        terms = {} if self.quoted is None else self.quoted(scores)
        return terms | {"accuracy": [{key: (score, 1.0) for key, score in scores.items()}]}

    def render(self, scores: Scores) -> str:
        """The scores as a table for people."""
        return render_scores(scores, self.title, self.labels)

    def rehearse(self, folder: Path) -> None:
        """Score and submit made-up answers to all questions, so that bad references fail before the run, not after it.

        Raises `UserError`: questions and references do not belong together, one of them is malformed, a library that
        the submission needs is not installed, or the temporary folder is full.
        """
        try:
            with TemporaryDirectory() as temporary:
                answers = Path(temporary) / "answers.jsonl"
                with open(answers, "w", encoding="utf-8") as file:
                    for where, row in read_jsonl(folder / self.questions, "question file"):
                        question_id = answer_files.field(row, "question_id", where, (str, int))
                        prompt = answer_files.field(row, "text", where)
                        file.write(json.dumps({"question_id": question_id, "prompt": prompt, "text": "A"}) + "\n")
                if self.judge is not None:
                    self.score(folder, answers)
                if self.submit is not None:
                    self.submit(folder, answers, Path(temporary) / f"upload{self.upload_suffix}")
        except OSError as error:
            raise UserError(
                f"{self.title} cannot be rehearsed in the temporary folder {gettempdir()}: {error.strerror}; "
                "make room there, or name another one in TMPDIR"
            ) from error
