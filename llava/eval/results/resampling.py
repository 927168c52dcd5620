"""The quoted scores of each benchmark, until `Benchmark.quoted` has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from llava.eval.eval_mme import TASKS
from llava.eval.metrics.intervals import (
    Clusters,
    Key,
    Ratio,
    Terms,
    paired_bootstrap,
    share_interval,
    sign_test,
)

__all__ = ["Clusters", "Key", "Terms", "clusters", "paired_bootstrap", "quoted", "share_interval", "sign_test"]


def clusters(kind: str | None, keys: Sequence[Key], images: Mapping[Key, str] | None) -> Clusters:
    """`Clusters.by_image`; MME's are drawn within their task."""
    return Clusters.by_image(keys, images, _task) if kind == "mme" else Clusters.by_image(keys, images)


def _task(key: Key) -> str:
    return key[0].split("/")[0]


def ratios(kind: str | None, scores: Mapping[Key, float]) -> dict[str, list[Ratio]]:
    """The scores that people quote of a benchmark, by name, from the score of each question (in [0, 1]).

    "accuracy" (percent) of every benchmark; of MME also "perception", "cognition" and "total", where it has such tasks.
    """
    columns: dict[str, list[Ratio]] = {}
    if kind == "mme":
        by_task: dict[str, dict[Key, float]] = defaultdict(dict)
        for key, score in scores.items():
            by_task[_task(key)][key] = score
        for group, names in TASKS.items():
            columns[group] = [
                r for name in names if name in by_task for r in (_mean(by_task[name]), _pairs(by_task[name]))
            ]
        columns["total"] = [column for group in TASKS for column in columns[group]]
    columns["accuracy"] = [_mean(scores)]
    return {name: found for name, found in columns.items() if found}


def _mean(scores: Mapping[Key, float]) -> Ratio:
    return {key: (score, 1.0) for key, score in scores.items()}


def _pairs(scores: Mapping[Key, float]) -> Ratio:
    """MME's acc+: images with both questions right, among those with both answered."""
    images: dict[str, list[tuple[Key, float]]] = defaultdict(list)
    for key, score in scores.items():
        images[key[0]].append((key, score))
    return {
        asked[0][0]: (float(all(score == 1 for _, score in asked)), 1.0) for asked in images.values() if len(asked) == 2
    }


def quoted(kind: str | None, scores: Mapping[Key, float], drawn: Clusters) -> dict[str, Terms]:
    """`ratios` summed over clusters."""
    return {name: drawn.terms(found) for name, found in ratios(kind, scores).items()}
