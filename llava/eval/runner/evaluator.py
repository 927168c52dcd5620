"""`Evaluator`: answers and scores a benchmark, dense or pruned, resumable; used by every command, and from Python.

    evaluator = Evaluator(options)  # an options dataclass with ModelOptions and GenerationOptions among its bases
    gqa = find_benchmark("gqa")
    folder = gqa.at("playground/data/eval")
    configs = {"dense": None, "fastv": PruningConfig.of({"method": "fastv", "k": 2, "r": 0.5})}
    plans = {name: evaluator.plan(gqa, folder, Path(f"runs/gqa/{name}.jsonl"), configs[name]) for name in configs}
    runs = {name: evaluator.run(plan) for name, plan in plans.items()}
    runs["fastv"].scores, runs["fastv"].costs.flops_share, runs["fastv"].agreement(runs["dense"])

Plan everything first, then run: `plan` makes every check that needs no weights. The model loads when it is first
needed, once; a run whose answers are all there loads nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from llava.cli import GenerationOptions, ModelOptions, UserError, part_of
from llava.eval.benchmarks import Benchmark
from llava.eval.runner import answers_file as files
from llava.eval.runner.answers_file import AnswersFile
from llava.eval.runner.batches import Batch, BatchDataset, group
from llava.eval.runner.distributed import Ranks
from llava.eval.runner.questions import Question, Skipped, get_chunk, read_questions, require_images
from llava.eval.runner.run import Run
from llava.eval.runner.runfile import check_settings, fingerprint, read_run_file, run_file_of, write_run_file
from llava.eval.runner.session import Plan, Session, costs_of
from llava.model.loaded import LoadedModel
from llava.model.preflight import Checked, check_model
from llava.model.processors import takes_videos
from llava.model.pruning import PruningConfig
from llava.model.silence import silence
from llava.model.videos import rule_of

DENSE = "dense"
Rows = list[tuple[str, dict[str, Any]]]


def named_configs(given: Iterable[str]) -> dict[str, PruningConfig]:
    """The configs of --config NAME=CONFIG by name, where CONFIG is JSON or a .json file.

    Raises `UserError` for another form, a name given twice or not fit for a file, and for "dense", which is built in.
    """
    configs: dict[str, PruningConfig] = {}
    for text in given:
        name, equals, source = text.partition("=")
        if not equals or not name.replace("-", "").replace("_", "").isalnum():
            raise UserError(f"--config {text!r} is not NAME=CONFIG, e.g. paper=pruning.json")
        if name == DENSE or name in configs:
            raise UserError(f"--config: the name {name!r} is taken; every name once ({DENSE!r} is built in)")
        try:
            configs[name] = PruningConfig.of(source)
        except ValueError as error:
            raise UserError(f"config {name!r}: {error}") from None
    return configs


class Evaluator:
    """Runs benchmarks on one model, which is loaded once, on first use.

    Args:
        options: the model's and the generation's options: any object with the attributes of `ModelOptions` and
            `GenerationOptions`; what it lacks has its default. Its `pruning_config` is not read: `plan` takes a config.
        command: the command line for run files.
        ranks: the processes that share the work; default: this one alone.

    """

    def __init__(self, options: Any, command: str = "", ranks: Ranks | None = None):
        self.ranks = ranks or Ranks()
        self.command = command
        self.model_options = part_of(ModelOptions, options)
        if self.ranks.device is not None:
            self.model_options = replace(self.model_options, device=self.ranks.device)
        self.options = part_of(GenerationOptions, options)
        self._checked: dict[str, Checked] = {}
        self._selected: dict[tuple, tuple[list[Question], list[Question], list[Skipped]]] = {}
        self._rehearsed: set[tuple[str, Path]] = set()
        self._discarded: set[Path] = set()

    def plan(
        self,
        benchmark: Benchmark,
        folder: Path,
        answers_file: Path,
        config: PruningConfig | None,
        *,
        chunk: tuple[int, int] = (0, 1),
        **changes: Any,
    ) -> Plan:
        """Check everything that needs no weights.

        These are the benchmark's files, questions and images, a rehearsal of its scoring, the model's folder, the
        config against the model, and existing answers against the settings.

        Args:
            benchmark: what is asked.
            folder: the folder of its files (`benchmark.at(data_dir)`).
            answers_file: the .jsonl to write or to continue.
            config: the pruning config; None is the untouched model.
            chunk: (index, count): ask only this of `count` equal parts of the questions.
            changes: other values of `GenerationOptions`, e.g. `limit=100, max_new_tokens=16`.

        Raises:
            UserError: the first mistake, in one line.

        """
        options = replace(self.options, **changes)
        if options.max_new_tokens is None:
            options = replace(options, max_new_tokens=benchmark.max_new_tokens)
        folder, answers_file = Path(folder).expanduser(), Path(answers_file).expanduser()
        benchmark.require(folder)
        question_file, images = folder / benchmark.questions, folder / benchmark.images
        if not images.is_dir():
            raise UserError(f"the image folder {images} is not a folder")
        if answers_file.is_dir():
            raise UserError(f"the answers file {answers_file} is a folder: give a file")
        if answers_file.exists() and question_file.exists() and answers_file.samefile(question_file):
            raise UserError(f"the answers file and the question file are both {question_file}")
        known, selected, skipped = self._select(question_file, images, chunk, options)
        checked = self._check_model(config)
        selected, too_long = _fitting(selected, checked)
        if too_long and not options.skip_bad:
            raise too_long[0].refusal()
        settings = checked.settings | {
            "question_file": fingerprint(question_file)[:16],
            "chunk": list(chunk),
            "temperature": options.temperature,
            "top_p": options.top_p,
            "num_beams": options.num_beams,
            "max_new_tokens": options.max_new_tokens,
        }
        if shows_video := next((question for question in selected if question.videos), None):
            if not takes_videos(checked.layout.model_type):
                raise UserError(f"{shows_video.where}: a model of type {checked.layout.model_type!r} takes no videos")
            settings["video"] = rule_of(options)
        if options.temperature > 0:
            settings |= {"seed": options.seed, "batch_size": options.batch_size}
        plan = Plan(
            benchmark,
            folder,
            answers_file,
            checked.config,
            checked.filled_in,
            options,
            known,
            selected,
            skipped + too_long,
            settings,
            checked.visual_schedule,
        )
        if self.ranks.index == 0:
            if (benchmark.name, folder) not in self._rehearsed and (benchmark.judge or benchmark.submit):
                benchmark.rehearse(folder)
                self._rehearsed.add((benchmark.name, folder))
            files.check_folder(answers_file.parent)
            rows, _ = self._found(plan)
            files.unanswered(rows, known, selected)
            costs_of(rows)
        return plan

    def _select(self, question_file: Path, images: Path, chunk: tuple[int, int], options: GenerationOptions):
        key = (question_file, images, chunk, options.limit, options.skip_bad, options.follow_symlinks)
        if key not in self._selected:
            known = read_questions(question_file, images, options.follow_symlinks)
            chosen = get_chunk(known[: options.limit], chunk[1], chunk[0])
            self._selected[key] = (known, *require_images(chosen, options.skip_bad))
        return self._selected[key]

    def run(self, plan: Plan) -> Run | None:
        """Answer open questions, gather and score the answers; return the run on rank 0, None elsewhere.

        Every process calls this with the same plan. Errors propagate, as `RankError` in the other processes. An
        interrupted run continues when it is run again.
        """
        if not self._answer(plan):
            return None
        run_file = run_file_of(plan.answers_file)
        record = read_run_file(run_file)
        asked = record["totals"]["questions"]
        if plan.benchmark.judge is not None and asked:
            scores = plan.benchmark.score(plan.folder, plan.answers_file, asked < len(plan.known))
            if record.get("scores") != scores:
                write_run_file(run_file, record | {"scores": scores})
        if plan.benchmark.submit is not None and asked == len(plan.known):
            plan.benchmark.submit(plan.folder, plan.answers_file, upload_file_of(plan))
        return Run.read(plan.answers_file)

    def _answer(self, plan: Plan) -> bool:
        """Answer open questions; return whether this is rank 0, which gathers the answers."""
        ranks, topic = self.ranks, str(plan.answers_file)
        rows, earlier, open_places = [], None, None
        if ranks.index == 0:
            rows, earlier = self._found(plan)
            todo = files.unanswered(rows, plan.known, plan.selected)
            open_places = [question.index for question in todo]
        places = set(ranks.broadcast(f"{topic} todo", open_places))
        todo = [question for question in plan.selected if question.index in places]
        session = Session(plan, self.model_options, self.command, rows, earlier, ranks)
        if todo:
            loaded = self.loaded
            if ranks.index == 0:
                if self._discards(plan):
                    files.clear(plan.answers_file)
                    self._discarded.add(plan.answers_file)
                session.write("running")  # before the first answer: a kill never leaves answers of unknown settings
            ranks.broadcast(f"{topic} begin", True)
            with AnswersFile(files.part_of(plan.answers_file, ranks.index)) as part:
                session.ask(todo, part, loaded)
        skipped = [[bad.question.index, bad.reason] for bad in session.skipped]
        try:
            done = ranks.gather(f"{topic} done", {"session": session.about, "skipped": skipped})
        except BaseException:  # another process failed after this one had done its share
            session.interrupt()
            raise
        if ranks.index > 0:
            return False
        if earlier is not None and earlier["state"] == "finished" and not todo:
            last = earlier["sessions"][-1]
            print(
                f"{plan.answers_file}: all {len(plan.selected)} questions are answered, nothing is asked; "
                f"times are those of {last['started']}, batch size {last.get('batch_size', 'unknown')}",
                file=sys.stderr,
            )
            return True
        rows, _ = files.gather(plan.answers_file)
        files.finish(plan.answers_file, [row for _, row in rows], {one.key: one.index for one in plan.known})
        reasons = {index: reason for one in done for index, reason in one["skipped"]}
        bad = [Skipped(question, reasons[question.index]) for question in plan.known if question.index in reasons]
        session.finish(rows, [one["session"] for one in done], bad)
        return True

    def _discards(self, plan: Plan) -> bool:
        """Whether --overwrite still has to discard answers; never those of this evaluator."""
        return plan.options.overwrite and plan.answers_file not in self._discarded

    def _found(self, plan: Plan) -> tuple[Rows, dict[str, Any] | None]:
        """The existing answers and their run file."""
        rows, repaired = files.gather(plan.answers_file, self._discards(plan))
        if repaired:
            print(
                f"warning: cut off {repaired} bytes of a half-written or garbled last line of {plan.answers_file}",
                file=sys.stderr,
            )
        if not rows:
            return rows, None
        earlier = read_run_file(run_file_of(plan.answers_file))
        check_settings(plan.answers_file, earlier, plan.settings)
        return rows, earlier

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model; loaded on first use."""
        return LoadedModel.from_path(self.model_options)

    def batches(self, questions: Iterable[Question], batch_size: int | None = None) -> list[Batch]:
        """Prepare questions in independent batches, which an `Answerer` can answer in any order."""
        chosen = list(questions)
        groups = group(chosen, set(chosen), batch_size or self.options.batch_size, self.loaded.inputs)
        groups = [replace(one, image_group=place) for place, one in enumerate(groups)]
        alone = BatchDataset(groups, self.loaded.inputs, self.options)
        return [alone[place] for place in range(len(alone))]

    def _check_model(self, config: PruningConfig | None) -> Checked:
        """Check the model's folder, and the config against it, once for each config."""
        key = json.dumps(config and config.to_dict())
        if key not in self._checked:
            self._checked[key] = check_model(self.model_options, config)
        return self._checked[key]


def _fitting(questions: list[Question], checked: Checked) -> tuple[list[Question], list[Skipped]]:
    """Separate the questions whose text alone is longer than the context; with images the length is known later.

    A token is at least a byte, so that few texts have to be tokenized, if any.
    """
    limit = checked.layout.limit
    suspects = [question for question in questions if limit is not None and len(question.text.encode()) > limit]
    if not suspects:
        return questions, []
    with silence():
        tokenizer = AutoTokenizer.from_pretrained((checked.base or checked.source).folder)
        lengths = {one: len(tokenizer(one.text, add_special_tokens=False).input_ids) for one in suspects}
    reason = "the prompt has {} tokens without its images, the model takes {}"
    bad = [Skipped(one, reason.format(length, limit)) for one, length in lengths.items() if length > limit]
    left_out = {one.question for one in bad}
    return [question for question in questions if question not in left_out], bad


def upload_file_of(plan: Plan) -> Path:
    """Path of the file for an evaluation server or grader."""
    return plan.answers_file.with_name(plan.answers_file.stem + ".upload" + plan.benchmark.upload_suffix)
