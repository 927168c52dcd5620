"""`--force-plan`: thresholds with which VisiPruner, measuring as always, finds a given filter layer, on any weights.

Random weights have no filter layer, but a method's cost can only be timed where it prunes. So thresholds are chosen on
the given prompts: `layer_threshold` between the smallest cosine of the wanted layer and those of the layers probed
before it; `tokens_threshold` between the K-th and the next largest L2 (median over prompts, so that single prompts may
keep more or fewer than K); and an exit vote in every layer, `exit_patience` of them.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from llava.cli import UserError
from llava.model.pruning import PruningConfig, PruningTrace
from llava.model.pruning.methods import VisiPruner

from .options import ForcedPlan
from .workload import Workload


def can_be_forced(config: PruningConfig) -> bool:
    """Whether `--force-plan` applies to this config."""
    return isinstance(config, VisiPruner) and config.middle


def check(name: str, config: VisiPruner, plan: ForcedPlan, layers: int, visual: int) -> None:
    """Raise `UserError` where `plan` does not fit a config, a decoder of `layers` layers or `visual` visual tokens."""
    first = config.resolved(layers).shallow_mid_layer + config.probe_offset
    deepest = plan.layer + 2 if plan.exit_layer is None else plan.exit_layer + 1
    problem = None
    if plan.layer < first:
        problem = f"config {name!r} measures from layer {first} on"
    elif deepest > layers:
        problem = f"the decoder has {layers} layers, and what is chosen after the last one has no effect"
    elif plan.keep > visual:
        problem = f"a prompt has {visual} visual tokens"
    elif plan.exit_layer is not None and not config.deep:
        problem = f"config {name!r} has no exit without 'deep' in its mode"
    if problem:
        raise UserError(f"--force-plan {plan} cannot be: {problem}")


def with_thresholds(name: str, config: VisiPruner, plan: ForcedPlan, workload: Workload) -> VisiPruner:
    """Return the config with thresholds that decide as `plan` says on the prompts, which are read three times.

    Raises `UserError` where no threshold does, with what was measured.
    """
    settings: dict[str, Any] = {"layer_threshold": _layer_threshold(name, config, plan, workload)}
    open_config = dataclasses.replace(config, **settings, tokens_threshold=0.0)
    settings["tokens_threshold"] = statistics.median(
        _between(sorted(trace.influence, reverse=True), plan.keep) for trace in read(workload, open_config)
    )
    if plan.exit_layer is not None:
        settings |= {"exit_threshold": 0.0, "exit_patience": plan.exit_layer - plan.layer - 1}
    forced = dataclasses.replace(config, **settings)
    for trace in read(workload, forced):
        missed = trace.filter_layer != plan.layer
        missed |= plan.exit_layer is not None and bool(trace.kept) and trace.exit_layer != plan.exit_layer
        if missed:
            raise UserError(
                f"--force-plan: with {settings} config {name!r} has filter layer {trace.filter_layer} and exit layer "
                f"{trace.exit_layer} in one of the prompts, not {plan.layer} and {plan.exit_layer}"
            )
    return forced


def _layer_threshold(name: str, config: VisiPruner, plan: ForcedPlan, workload: Workload) -> float:
    traces = read(workload, dataclasses.replace(config, layer_threshold=0.0))
    probes = [probe for trace in traces for probe in trace.probes]
    reached = [probe.min_cosine for probe in probes if probe.layer == plan.layer]
    before = [(probe.min_cosine, probe.layer) for probe in probes if probe.layer < plan.layer]
    lowest, where = min(before, default=(1.0, None))
    if len(reached) < len(traces) or max(reached) >= lowest:
        found = f"{max(reached):.6f}" if reached else "not measured"
        raise UserError(
            f"--force-plan {plan}: no layer_threshold makes config {name!r} filter there first: the smallest cosine "
            f"is {found} in layer {plan.layer} and {lowest:.6f} in layer {where}"
        )
    return (max(reached) + lowest) / 2


def _between(descending: Sequence[float], keep: int) -> float:
    """Return the midpoint of the `keep`-th largest value and the next one; 0 without a next one."""
    following = descending[keep] if keep < len(descending) else 0.0
    return (descending[min(keep, len(descending)) - 1] + following) / 2


def read(workload: Workload, config: PruningConfig) -> list[PruningTrace]:
    """Read the prompts once and return their traces."""
    with torch.inference_mode(), workload.pruned(config) as session:
        workload.ask(1)
    return session.traces
