"""Choosing: every method's config at a budget, on tuning questions alone; no benchmark question is looked at.

All methods are tried alike: of the settings that meet the budget (other layers, other thresholds) at most so many are
asked on the tuning questions, and the highest accuracy wins; of equal ones that which is nearer to the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llava.eval.tuning.candidates import LAYER_THRESHOLDS, Candidate, Space
from llava.eval.tuning.recording import Watched, watch
from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.methods import VTW, DivPrune, VisiPruner

from .asking import Answered, Asker
from .dry import DryRun
from .fitted import fitted
from .knobs import Knob, knobs
from .matching import Absent, Counted, Matched, matched, settle
from .thresholds import WINDOWS, all_candidates, around, near, plan_knobs, spread, token_knob

FIT_QUESTIONS, WATCHED_QUESTIONS = 16, 64
SLACK = 0.005
"""By how much of dense the cost that a trial of VisiPruner measures may exceed the budget."""
ASKED_STEPS = 5
"""Bisections of a knob whose cost is asked of the model, a run on all tuning questions each."""
SETTLED = 3
"""Settings of VisiPruner whose tokens are set to the budget, beyond the trials; of other methods all trials are."""

METHODS = ("visipruner", "plan", "divprune-visipruner", "fastv", "pyramiddrop", "sparsevlm", "vtw", "fitprune")
METHODS += ("topk-text", "topk-visual", "topk-influence", "visionzip", "divprune", "random", "random-before")

Entry = dict[str, Any]
"""{"config", "share" (FLOPs on tuning questions), "told", "tried": [trials]}, or {"absent": why}."""
Tried = tuple[Candidate, Entry]
"""A setting of VisiPruner, and its trial."""


class Chooser:
    """Finds configs by asking `asker`, which holds the tuning questions and has answered them dense.

    folder: for what is measured once; trials: settings of one method that are asked at a budget, at most
    """

    def __init__(self, asker: Asker, folder: Path, trials: int):
        self.asker, self.folder, self.trials = asker, folder, trials

    def choose(
        self, method: str, budget: float, visipruner: Entry | None = None, mildest: Entry | None = None
    ) -> Entry:
        """Return a method's entry at a budget, a share of dense prefill FLOPs.

        visipruner: the entry of VisiPruner at this budget, for `plan`
        mildest: its entry at the largest budget, for `divprune-visipruner`
        """
        if method == "visipruner":
            return self._visipruner(budget)
        if method == "plan":
            return self._plan(budget, visipruner)
        if method == "divprune-visipruner":
            return self._composed(budget, mildest)
        if method == "fitprune":
            try:
                made = [fitted(self.asker.loaded, self._fit_batches, self.dry, budget)]
            except ValueError as error:
                return _absent(str(error))
        else:
            made = self._knobs[method]
        return self._best(matched(made, budget, self._counted, self.trials))

    @cached_property
    def dry(self) -> DryRun:
        """Counts FLOPs on prompts as long as the tuning questions'."""
        return DryRun(self.asker.shape, self.asker.sizes(), self.asker.args.count)

    @cached_property
    def _floor(self) -> float:
        """What prompts cost without visual tokens, as a share of all FLOPs; 0 where these are what counts."""
        if self.asker.args.count == "all":
            return 0.0
        return DryRun(self.asker.shape, self.asker.sizes()).share(VTW(k=0))

    @cached_property
    def _counted(self) -> Counted:
        return Counted(self.dry.share)

    @cached_property
    def _knobs(self) -> dict[str, list[Knob]]:
        return dict(knobs(self.asker.shape.layers, self.dry.visual_tokens))

    @cached_property
    def _fit_batches(self) -> list[Any]:
        return self.asker.batches(FIT_QUESTIONS)

    @cached_property
    def _space(self) -> Space:
        path = self.folder / "influence.npz"
        if not path.is_file():
            watch(self.asker.loaded, self.asker.batches(WATCHED_QUESTIONS)).save(path)
        return Space(Watched.read(path), self.asker.shape, "absolute")

    @cached_property
    def _candidates(self) -> list[Candidate]:
        return all_candidates(self._space)

    def _best(self, found: Sequence[Matched] | Absent) -> Entry:
        if isinstance(found, Absent):
            return _absent(found.reason)
        if any(stage.reads_vision for stage in found[0].config.stages):
            try:
                prune(self.asker.loaded.model, found[0].config)
            except ValueError as error:
                return _absent(str(error))
        if len(found) == 1:
            return _entry(found[0].config, found[0].share, found[0].told, [])
        tried = [_trial(one.told, one.config, self.asker.ask_once(one.config)) for one in found]
        return _winner(tried)

    def _visipruner(self, budget: float) -> Entry:
        def fits(row: Entry) -> bool:
            return row["share"] <= budget + SLACK

        tried: list[Tried] = []
        for attempt in range(len(WINDOWS) - 1):
            found = near(self._candidates, budget, attempt, self._floor)
            first = spread(found, self.trials // 2)
            rows = [self._try(one) for one in first]
            within = [pair for pair in rows if fits(pair[1])]
            if within:
                best = max(within, key=_accurate)[0]
                others = [one for one in found if one not in first]
                rows += [self._try(one) for one in around(best, others, self.trials - len(first))]
            tried += rows
            if within:
                break
        if not tried:
            highest = max(LAYER_THRESHOLDS)
            return _absent(f"no layer early enough has a token whose cosine is below {highest}, so as to filter there")
        entries = [row for _, row in tried] + self._settled(tried, budget)
        if any(map(fits, entries)):
            return _winner(entries, fits)
        return _absent(f"the cheapest of {len(tried)} tried still costs {100 * min(r['share'] for r in entries):.1f}%")

    def _try(self, one: Candidate) -> Tried:
        config = PruningConfig.from_dict(one.settings("absolute"))
        return one, _trial("", config, self.asker.ask_once(config))

    def _settled(self, tried: Sequence[Tried], budget: float) -> list[Entry]:
        """Set the most accurate settings to the budget by the tokens that stay, also those that were too dear."""
        frames: dict[Candidate, Candidate] = {}
        for one, _ in sorted(tried, key=_accurate, reverse=True):
            frames.setdefault(replace(one, tokens_threshold=0.0, flops=0.0), one)
        rows = []
        for one in list(frames.values())[:SETTLED]:
            knob = token_knob(self._space, one)
            found = settle(knob, budget, lambda config: self.asker.ask_once(config).share, ASKED_STEPS)
            if found is not None:
                rows.append(_trial("", found.config, self.asker.ask_once(found.config)))
        return rows

    def _plan(self, budget: float, visipruner: Entry | None) -> Entry:
        if visipruner is None or "absent" in visipruner:
            return _absent("VisiPruner has no schedule at this budget")
        config = PruningConfig.from_dict(visipruner["config"])
        assert isinstance(config, VisiPruner)
        resolved, shape = config.resolved(self.asker.shape.layers), self.asker.shape
        made = plan_knobs(resolved, self.asker.totals(config), shape, self.dry.visual_tokens)
        return self._best(matched(made, budget, self._counted, 1))

    def _composed(self, budget: float, mildest: Entry | None) -> Entry:
        """DivPrune in front of VisiPruner, whose settings are those of the largest budget; what it costs is asked."""
        if mildest is None or "absent" in mildest:
            return _absent("VisiPruner reaches none of the budgets")
        config = PruningConfig.from_dict(mildest["config"])
        knob = Knob("", lambda x: replace(config, before=DivPrune(share=x)))
        found = settle(knob, budget, lambda one: self.asker.ask_once(one).share, ASKED_STEPS)
        if found is None:
            return _absent("its boldest setting is dearer")
        if found.config == knob.setting(1.0):
            return _absent("VisiPruner with these settings needs no help to save as much")
        return _entry(found.config, found.share, found.told, [])


def _absent(reason: str) -> Entry:
    return {"absent": reason}


def _entry(config: PruningConfig, share: float, told: str, tried: list[Entry]) -> Entry:
    return {"config": config.to_dict(), "share": share, "told": told, "tried": tried}


def _trial(told: str, config: PruningConfig, answered: Answered) -> Entry:
    return {"told": told, "config": config.to_dict(), "share": answered.share, "accuracy": answered.accuracy}


def _rank(row: Entry) -> tuple[float, float]:
    return sum(row["accuracy"].values()) / len(row["accuracy"]), row["share"]


def _accurate(tried: Tried) -> tuple[float, float]:
    return _rank(tried[1])


def _winner(tried: list[Entry], allowed: Callable[[Entry], bool] = lambda row: True) -> Entry:
    best = max(filter(allowed, tried), key=_rank)
    return _entry(PruningConfig.from_dict(best["config"]), best["share"], best["told"], tried)
