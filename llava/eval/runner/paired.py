"""Paired prefill times: all configs answer the same batches in turn, round after round, so that drift cancels out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from llava.cli import GenerationOptions
from llava.eval.runner.answering import Answerer
from llava.eval.runner.batches import Batch
from llava.model.loaded import LoadedModel
from llava.model.pruning import PruningConfig


def paired_times(
    loaded: LoadedModel,
    batches: Sequence[Batch],
    configs: Mapping[str, PruningConfig | None],
    *,
    baseline: str,
    rounds: int,
) -> dict[str, dict[str, Any]]:
    """Time the prefill of every config on the same questions.

    loaded: the model (`Evaluator.loaded`); batches: what it is asked (`Evaluator.batches`)
    configs: by name; None is the untouched model
    Returns by config `prefill_ms` (median over rounds, per question, decoder only), `prefill_ms_rounds`,
    `decode_ms_per_token`, and `speedup` (median over rounds of the baseline's time / this config's) with its
    `speedup_range`. The first round warms up and is not counted.
    """
    prefill: dict[str, list[float]] = {name: [] for name in configs}
    decode: dict[str, list[float]] = {name: [] for name in configs}
    names = list(configs)
    for number in tqdm(range(rounds + 1), unit="round", desc="paired timing"):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            spent = _time_once(loaded, configs[name], batches)
            if number:
                prefill[name].append(spent["prefill"])
                decode[name].append(spent["decode"])
    return {name: _figures(prefill[name], decode[name], prefill[baseline]) for name in names}


def _time_once(loaded: LoadedModel, config: PruningConfig | None, batches: Sequence[Batch]) -> dict[str, float]:
    """Milliseconds per question of prefill and of one decoding step, over all batches."""
    spent, count = {"prefill": 0.0, "decode": 0.0}, 0
    with Answerer(loaded, config, GenerationOptions(max_new_tokens=2)) as answerer:
        for batch in batches:
            lines, bad = answerer.answer(batch)
            if bad:
                raise bad[0].refusal()
            for line in lines:
                count += 1
                for stage in spent:
                    spent[stage] += line["metadata"]["milliseconds"][stage]
    return {stage: total / count for stage, total in spent.items()}


def _figures(prefill: list[float], decode: list[float], baseline: list[float]) -> dict[str, Any]:
    ratios = [dense / pruned for dense, pruned in zip(baseline, prefill, strict=True)]
    return {
        "prefill_ms": round(statistics.median(prefill), 4),
        "prefill_ms_rounds": [round(value, 4) for value in prefill],
        "decode_ms_per_token": round(statistics.median(decode), 4),
        "speedup": round(statistics.median(ratios), 4),
        "speedup_range": [round(min(ratios), 4), round(max(ratios), 4)],
    }
