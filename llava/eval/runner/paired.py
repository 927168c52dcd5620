"""Paired prefill times: all configs answer the same batches in turn, round after round, so that drift cancels out."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.eval.runner.answering import Answerer, Generation
from llava.eval.runner.batches import Batch, BatchDataset, group
from llava.eval.runner.questions import read_questions
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.inputs import Inputs, inputs_for
from llava.model.pruning import PruningConfig
from llava.utils import pick_device, pick_dtype


def paired_times(
    args: argparse.Namespace,
    configs: Mapping[str, PruningConfig | None],
    files: Sequence[tuple[Path, Path]],
    baseline: str,
) -> dict[str, dict[str, Any]]:
    """Time the prefill of every config on the same questions.

    args: `model_path`, `device`, `dtype`, `batch_size`, `rounds`, `timed_questions` (of each file)
    configs: by name; None is the untouched model
    files: (question file, image folder)
    Returns by config `prefill_ms` (median over rounds, per question, decoder only), `prefill_ms_rounds`,
    `decode_ms_per_token`, and `speedup` (median over rounds of the baseline's time by this config's) with its
    `speedup_range`. The first round warms up and is not counted.
    """
    path = os.path.expanduser(args.model_path)
    name = get_model_name_from_path(path)
    dtype = pick_dtype(args.dtype, pick_device(args.device))
    tokenizer, model, processor, _ = load_pretrained_model(path, None, name, device=args.device, dtype=dtype)
    inputs = inputs_for(tokenizer, processor, model.config)
    batches: list[Batch] = []
    for question_file, images in files:
        asked = read_questions(question_file, str(images))[: args.timed_questions]
        groups = group(asked, set(asked), args.batch_size)
        dataset = BatchDataset(groups, inputs)
        batches += [dataset[index] for index in range(len(dataset))]
    prefill: dict[str, list[float]] = {config: [] for config in configs}
    decode: dict[str, list[float]] = {config: [] for config in configs}
    names = list(configs)
    for number in tqdm(range(args.rounds + 1), unit="round", desc="paired timing"):
        turn = number % len(names)
        for config in names[turn:] + names[:turn]:
            spent = _time_once(model, inputs, name, configs[config], batches)
            if number:
                prefill[config].append(spent["prefill"])
                decode[config].append(spent["decode"])
    return {config: _figures(prefill[config], decode[config], prefill[baseline]) for config in names}


def _time_once(
    model, inputs: Inputs, name: str, config: PruningConfig | None, batches: Sequence[Batch]
) -> dict[str, float]:
    """Milliseconds a question of prefill and of one decoding step, over all batches."""
    spent, count = {"prefill": 0.0, "decode": 0.0}, 0
    with Answerer(model, inputs, name, config, Generation(max_new_tokens=2)) as answerer:
        for batch in batches:
            lines, bad = answerer.answer(batch)
            if bad:
                raise ValueError(f"{bad[0].question.where}: {bad[0].reason}")
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
