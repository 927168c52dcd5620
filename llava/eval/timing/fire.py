"""`--fire`: thresholds with which VisiPruner, measuring as always, finds a given filter layer, on any weights.

Random weights have no filter layer of their own. What a method costs can only be timed where it fires, so thresholds
are read off the prompts at hand: `layer_threshold` between the smallest cosine of the wanted layer and those of the
layers probed before it; `tokens_threshold` between the K-th and the next largest L2 (the median over prompts, which
then keep more or fewer than K each); and the exit by a vote in every layer, `exit_patience` of them.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llava.model.pruning import PruningConfig, PruningTrace
from llava.model.pruning.methods import VisiPruner

from . import BenchError
from .subject import Subject


@dataclass(frozen=True)
class Fire:
    """Where the method is to fire: last layer with all visual tokens, tokens kept, first layer without any."""

    layer: int
    keep: int
    exit_layer: int | None = None

    @classmethod
    def parse(cls, text: str) -> Fire:
        """Read LAYER:KEEP or LAYER:KEEP:EXIT.

        Raises `ValueError` for anything else, and for an exit before there can be a vote.
        """
        parts = [int(part) for part in text.split(":")]
        if len(parts) not in (2, 3) or parts[0] < 0 or parts[1] < 1 or (parts[2:] and parts[2] < parts[0] + 2):
            raise ValueError
        return cls(*parts)


def fires(config: PruningConfig) -> bool:
    """Whether `--fire` is for this config."""
    return isinstance(config, VisiPruner) and config.middle


def check(name: str, config: VisiPruner, fire: Fire, layers: int, visual: int) -> None:
    """Raise `BenchError` where `fire` does not fit a config, a decoder of `layers` layers or `visual` visual tokens."""
    first = config.resolved(layers).shallow_mid_layer + config.probe_offset
    deepest = fire.layer + 2 if fire.exit_layer is None else fire.exit_layer + 1
    problem = None
    if fire.layer < first:
        problem = f"config {name!r} measures from layer {first} on"
    elif deepest > layers:
        problem = f"the decoder has {layers} layers, and what is chosen after the last one has no effect"
    elif fire.keep > visual:
        problem = f"a prompt has {visual} visual tokens"
    elif fire.exit_layer is not None and not config.deep:
        problem = f"config {name!r} has no exit without 'deep' in its mode"
    if problem:
        exit_layer = "" if fire.exit_layer is None else f":{fire.exit_layer}"
        raise BenchError(f"--fire {fire.layer}:{fire.keep}{exit_layer} cannot be: {problem}")


def calibrate(name: str, config: VisiPruner, fire: Fire, subject: Subject) -> VisiPruner:
    """Return the config with thresholds that fire as asked on the subject's prompts, which are read three times.

    Raises `BenchError` where no threshold does, with what was measured.
    """
    settings: dict[str, Any] = {"layer_threshold": _layer_threshold(name, config, fire, subject)}
    open_config = dataclasses.replace(config, **settings, tokens_threshold=0.0)
    settings["tokens_threshold"] = statistics.median(
        _between(sorted(trace.influence, reverse=True), fire.keep) for trace in read(subject, open_config)
    )
    if fire.exit_layer is not None:
        settings |= {"exit_threshold": 0.0, "exit_patience": fire.exit_layer - fire.layer - 1}
    calibrated = dataclasses.replace(config, **settings)
    for trace in read(subject, calibrated):
        missed = trace.filter_layer != fire.layer
        missed |= fire.exit_layer is not None and bool(trace.kept) and trace.exit_layer != fire.exit_layer
        if missed:
            raise BenchError(
                f"--fire: with {settings} config {name!r} has filter layer {trace.filter_layer} and exit layer "
                f"{trace.exit_layer} in one of the prompts, not {fire.layer} and {fire.exit_layer}"
            )
    return calibrated


def _layer_threshold(name: str, config: VisiPruner, fire: Fire, subject: Subject) -> float:
    traces = read(subject, dataclasses.replace(config, layer_threshold=0.0))
    probes = [probe for trace in traces for probe in trace.probes]
    reached = [probe.min_cosine for probe in probes if probe.layer == fire.layer]
    before = [(probe.min_cosine, probe.layer) for probe in probes if probe.layer < fire.layer]
    lowest, where = min(before, default=(1.0, None))
    if len(reached) < len(traces) or max(reached) >= lowest:
        found = f"{max(reached):.6f}" if reached else "not measured"
        raise BenchError(
            f"--fire {fire.layer}: no layer_threshold makes config {name!r} fire there first: the smallest cosine is "
            f"{found} in layer {fire.layer} and {lowest:.6f} in layer {where}"
        )
    return (max(reached) + lowest) / 2


def _between(descending: Sequence[float], keep: int) -> float:
    """Halfway between the `keep`-th largest value and the next one, 0 where there is none."""
    following = descending[keep] if keep < len(descending) else 0.0
    return (descending[min(keep, len(descending)) - 1] + following) / 2


def read(subject: Subject, config: PruningConfig) -> list[PruningTrace]:
    """Read the prompts once and return their traces."""
    with torch.inference_mode(), subject.pruned(config) as session:
        subject.ask(1)
    return session.traces
