"""Choose every method's config at a budget, on tuning questions only.

The same rule for all methods: at most `trials` settings that meet the budget (layers, thresholds) answer the tuning
questions, and the highest accuracy wins; ties: the config closer to the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.methods import METHODS, VTW, AttentionTopK, DivPrune, RandomPruning, VisiPruner

from .benchmark_set import Answered, BenchmarkSet
from .candidates import LAYER_THRESHOLDS, Candidate, Space
from .fitted import fitted
from .matching import Absent, DryRun, settle
from .recording import Recording, record
from .thresholds import WINDOWS, all_candidates, around, by_tokens, near, plans, spread

FIT_QUESTIONS, RECORDED_QUESTIONS = 16, 64
SLACK = 0.005
"""By how much of dense the cost that a trial of VisiPruner measures may exceed the budget."""
ASKED_STEPS = 5
"""Bisections where the cost is asked of the model, a run on all tuning questions each."""
SETTLED = 3
"""Settings of VisiPruner whose tokens are set to the budget, beyond the trials; of other methods all trials are."""

Entry = dict[str, Any]
"""{"config", "share" (FLOPs on tuning questions), "description", "tried": [trials]}, or {"absent": why}."""
Tried = tuple[Candidate, Entry]
"""A setting of VisiPruner, and its trial."""


def schedules(method: str, layers: int) -> list[PruningConfig]:
    """Return the configs of a method that differ in their layers; `with_budget` sets their tokens.

    method: as in the tables, or "path/to/file.py:Class" for a method of the user's own
    """
    if method.startswith("topk-"):
        return [one for one in AttentionTopK.schedules(layers) if one.rank == method.removeprefix("topk-")]
    if method in ("random", "random-before"):
        return [one for one in RandomPruning.schedules(layers) if (one.layer is None) == (method == "random-before")]
    if method not in METHODS and ":" not in method:
        PruningConfig.from_dict({"method": method})  # raises with the known names
    cls = METHODS[method] if method in METHODS else type(PruningConfig.of({"method": method}))
    return cls.schedules(layers)


class Chooser:
    """Finds configs on the tuning questions of `asker`, which has answered them dense.

    folder: for what is measured once; trials: settings of one method that are asked at a budget, at most
    """

    def __init__(self, asker: BenchmarkSet, folder: Path, trials: int):
        self.asker, self.folder, self.trials = asker, folder, trials

    def choose(
        self, method: str, budget: float, visipruner: Entry | None = None, mildest: Entry | None = None
    ) -> Entry:
        """Return a method's entry at a budget, a share of dense prefill FLOPs.

        visipruner: the entry of VisiPruner at this budget, for `plan`
        mildest: its entry at the largest budget, for `divprune-visipruner`
        """
        try:
            if method == "visipruner":
                return self._visipruner(budget)
            if method == "plan":
                return self._best(self._plans(visipruner), budget, 1)
            if method == "divprune-visipruner":
                return self._composed(budget, mildest)
            if method == "fitprune":
                fits = [fitted(self.asker.evaluator.loaded, self._fit_batches, self.dry, budget)]
                return self._best(fits, budget, 1)
            return self._best(schedules(method, self.asker.shape.layers), budget, self.trials)
        except Absent as error:
            return {"absent": str(error)}

    @cached_property
    def dry(self) -> DryRun:
        """Counts FLOPs on prompts as long as the tuning questions'."""
        return DryRun(self.asker.shape, self.asker.sizes(), self.asker.count)

    @cached_property
    def _floor(self) -> float:
        """Cost of prompts without visual tokens as a share of all FLOPs; 0 where these are what counts."""
        return 0.0 if self.asker.count == "all" else DryRun(self.asker.shape, self.asker.sizes()).share(VTW(k=0))

    @cached_property
    def _fit_batches(self) -> list[Any]:
        return self.asker.batches(FIT_QUESTIONS)

    @cached_property
    def _space(self) -> Space:
        path = self.folder / "influence.npz"
        if path.is_file():
            recording = Recording.read(path)
        else:
            recording = record(path, self.asker.evaluator.loaded, self.asker.batches(RECORDED_QUESTIONS))
        return Space(recording, self.asker.shape, "absolute")

    @cached_property
    def _candidates(self) -> list[Candidate]:
        return all_candidates(self._space)

    def _best(self, made: Sequence[PruningConfig], budget: float, most: int) -> Entry:
        matched = self.dry.settle(made, budget, most)
        if any(stage.reads_vision for stage in matched[0].config.stages):
            try:
                prune(self.asker.evaluator.loaded.model, matched[0].config)
            except ValueError as error:  # this model's encoder cannot be read
                raise Absent(str(error)) from None
        if len(matched) == 1:
            return _entry(matched[0].config, matched[0].share, [])
        return _winner([_trial(one.config, self.asker.ask_once(one.config)) for one in matched])

    def _visipruner(self, budget: float) -> Entry:
        def fits(row: Entry) -> bool:
            return row["share"] <= budget + SLACK

        tried: list[Tried] = []
        for attempt in range(len(WINDOWS) - 1):
            close = near(self._candidates, budget, attempt, self._floor)
            first = spread(close, self.trials // 2)
            rows = [self._try(one) for one in first]
            within = [pair for pair in rows if fits(pair[1])]
            if within:
                best = max(within, key=_accurate)[0]
                others = [one for one in close if one not in first]
                rows += [self._try(one) for one in around(best, others, self.trials - len(first))]
            tried += rows
            if within:
                break
        if not tried:
            highest = max(LAYER_THRESHOLDS)
            raise Absent(f"no layer early enough has a token whose cosine is below {highest}, so as to filter there")
        entries = [row for _, row in tried] + self._settled(tried, budget)
        if any(map(fits, entries)):
            return _winner(entries, fits)
        raise Absent(f"the cheapest of {len(tried)} tried still costs {100 * min(r['share'] for r in entries):.1f}%")

    def _try(self, one: Candidate) -> Tried:
        config = PruningConfig.from_dict(one.settings("absolute"))
        return one, _trial(config, self.asker.ask_once(config))

    def _settled(self, tried: Sequence[Tried], budget: float) -> list[Entry]:
        """Set the most accurate settings to the budget by the number of tokens kept, including those above it."""
        frames: dict[Candidate, Candidate] = {}
        for one, _ in sorted(tried, key=_accurate, reverse=True):
            frames.setdefault(replace(one, tokens_threshold=0.0, flops=0.0), one)
        settled = [
            settle(by_tokens(self._space, one), budget, self._asked_share, ASKED_STEPS)
            for one in list(frames.values())[:SETTLED]
        ]
        return [_trial(one.config, self.asker.ask_once(one.config)) for one in settled if one is not None]

    def _asked_share(self, config: PruningConfig) -> float:
        return self.asker.ask_once(config).share

    def _plans(self, visipruner: Entry | None) -> list[PruningConfig]:
        if visipruner is None or "absent" in visipruner:
            raise Absent("VisiPruner has no schedule at this budget")
        config, shape = PruningConfig.from_dict(visipruner["config"]), self.asker.shape
        assert isinstance(config, VisiPruner)
        return plans(config.resolved(shape.layers), self.asker.costs(config), shape, self.dry.visual_tokens)

    def _composed(self, budget: float, mildest: Entry | None) -> Entry:
        """DivPrune before the VisiPruner of the largest budget; its cost is measured."""
        if mildest is None or "absent" in mildest:
            raise Absent("VisiPruner reaches none of the budgets")
        config = PruningConfig.from_dict(mildest["config"])

        def at(x: float) -> PruningConfig:
            return replace(config, before=DivPrune(share=x))

        best = settle(at, budget, self._asked_share, ASKED_STEPS)
        if best is None:
            raise Absent("its most aggressive setting costs more")
        if best.config == at(1.0):
            raise Absent("VisiPruner with these settings needs no help to save as much")
        return _entry(best.config, best.share, [])


def describe(config: PruningConfig) -> str:
    """Return the layers of a config in words."""
    settings = config.layer_settings().items()
    return ", ".join(f"{k} {', '.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in settings)


def _entry(config: PruningConfig, share: float, tried: list[Entry]) -> Entry:
    return {"config": config.to_dict(), "share": share, "description": describe(config), "tried": tried}


def _trial(config: PruningConfig, answered: Answered) -> Entry:
    return {"config": config.to_dict(), "share": answered.share, "accuracy": answered.accuracy}


def _rank(row: Entry) -> tuple[float, float]:
    return sum(row["accuracy"].values()) / len(row["accuracy"]), row["share"]


def _accurate(tried: Tried) -> tuple[float, float]:
    return _rank(tried[1])


def _winner(tried: list[Entry], allowed: Callable[[Entry], bool] = lambda row: True) -> Entry:
    best = max(filter(allowed, tried), key=_rank)
    return _entry(PruningConfig.from_dict(best["config"]), best["share"], tried)
