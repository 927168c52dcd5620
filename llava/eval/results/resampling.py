"""The statistics of a paired comparison: quoted scores as ratios of sums, cluster bootstrap, exact tests.

Every quoted score is 100 · Σ_t (Σ_c num[c, t]) / (Σ_c den[c, t]) over clusters c of questions that share an image: an
accuracy has one term t, an MME sum two a task (acc and acc+). The bootstrap draws clusters with replacement (B. Efron,
R. Tibshirani, An Introduction to the Bootstrap, 1993) and computes both runs' scores on the same draw.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from llava.eval.benchmarks.mme import TASKS

Key = tuple[str, str]
LEVEL = 0.95
_DRAWS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Terms:
    """Numerators and denominators of one score, float64 [clusters, terms]."""

    num: np.ndarray
    den: np.ndarray

    def score(self, weights: np.ndarray) -> np.ndarray:
        """The score, [n], when cluster c occurs weights[i, c] times ([n, clusters]); empty terms count 0."""
        num, den = weights @ self.num, weights @ self.den
        return 100 * np.divide(num, den, out=np.zeros_like(num), where=den > 0).sum(-1)

    @property
    def value(self) -> float:
        """The score with every cluster once."""
        return float(self.score(np.ones((1, len(self.num))))[0])


@dataclass(frozen=True)
class Clusters:
    """Which questions are drawn together, and from where: cluster number by question, stratum by cluster."""

    of: Mapping[Key, int]
    strata: np.ndarray

    @property
    def count(self) -> int:
        """Number of clusters."""
        return len(self.strata)


def clusters(kind: str | None, keys: Sequence[Key], images: Mapping[Key, str] | None) -> Clusters:
    """Questions about one image form a cluster, a question without an image one of its own.

    With `images` None, for want of the question file, the questions of one id form a cluster: those of one image in
    MME and TextVQA, single questions in GQA.
    MME's clusters are drawn within their task, since its score is a sum over tasks; else there is one stratum.
    """
    numbers: dict[str, int] = {}
    of, strata = {}, {}
    for key in keys:
        name = key[0] if images is None else images.get(key, repr(key))
        number = numbers.setdefault(name, len(numbers))
        of[key] = number
        strata[number] = _task(key) if kind == "mme" else ""
    _, codes = np.unique(list(strata.values()), return_inverse=True)
    return Clusters(of, codes)


def _task(key: Key) -> str:
    return key[0].split("/")[0]


def quoted(kind: str | None, scores: Mapping[Key, float], drawn: Clusters) -> dict[str, Terms]:
    """The scores that people quote of a benchmark, by name, from the score of each question (in [0, 1]).

    "accuracy" (percent) of every benchmark; of MME also "perception", "cognition" and "total", where it has such tasks.
    """
    columns: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    if kind == "mme":
        by_task: dict[str, dict[Key, float]] = defaultdict(dict)
        for key, score in scores.items():
            by_task[_task(key)][key] = score
        tasks = {task: [_mean(some, drawn), _pairs(some, drawn)] for task, some in by_task.items()}
        for group, names in TASKS.items():
            columns[group] = [column for name in names if name in tasks for column in tasks[name]]
        columns["total"] = [column for group in TASKS for column in columns[group]]
    columns["accuracy"] = [_mean(scores, drawn)]
    return {
        name: Terms(np.stack([num for num, _ in found], axis=1), np.stack([den for _, den in found], axis=1))
        for name, found in columns.items()
        if found
    }


def _mean(scores: Mapping[Key, float], drawn: Clusters) -> tuple[np.ndarray, np.ndarray]:
    num, den = np.zeros(drawn.count), np.zeros(drawn.count)
    for key, score in scores.items():
        num[drawn.of[key]] += score
        den[drawn.of[key]] += 1
    return num, den


def _pairs(scores: Mapping[Key, float], drawn: Clusters) -> tuple[np.ndarray, np.ndarray]:
    """MME's acc+: images with both questions right, among those with both answered."""
    num, den = np.zeros(drawn.count), np.zeros(drawn.count)
    images: dict[str, list[tuple[Key, float]]] = defaultdict(list)
    for key, score in scores.items():
        images[key[0]].append((key, score))
    for asked in images.values():
        if len(asked) == 2:
            num[drawn.of[asked[0][0]]] += all(score == 1 for _, score in asked)
            den[drawn.of[asked[0][0]]] += 1
    return num, den


def _draws(strata: np.ndarray, resamples: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each cluster is drawn, float64 [n, clusters], `resamples` rows in all, some at a time."""
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    step = max(1, _DRAWS_AT_ONCE // len(strata))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        weights = np.zeros((rows, len(strata)))
        for group in members:
            size = len(group)
            drawn = random.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
            weights[:, group] = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
        yield weights


def paired_bootstrap(
    pairs: Mapping[str, tuple[Terms, Terms]], strata: np.ndarray, resamples: int = 10_000, seed: int = 0
) -> dict[str, list[float] | None]:
    """95% percentile intervals of the second score minus the first, for all scores on the same draws.

    pairs: name → (terms of run A, terms of run B); strata: int [clusters]
    Returns [low, high] by name; None where there is a single cluster, which has no spread.
    """
    if len(strata) < 2:
        return dict.fromkeys(pairs)
    differences: dict[str, list[np.ndarray]] = {name: [] for name in pairs}
    for weights in _draws(strata, resamples, np.random.default_rng(seed)):
        for name, (a, b) in pairs.items():
            differences[name].append(b.score(weights) - a.score(weights))
    tail = (1 - LEVEL) / 2
    return {
        name: [float(end) for end in np.quantile(np.concatenate(found), (tail, 1 - tail))]
        for name, found in differences.items()
    }


def sign_test(fixed: int, broken: int) -> float:
    """Two-sided exact p-value that answers change for the better as often as for the worse.

    For scores of 0 and 1 this is McNemar's exact test. It takes questions for independent, also those of one image.
    """
    return float(binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def share_interval(count: int, total: int) -> list[float]:
    """Wilson's 95% interval of a share, in percent."""
    interval = binomtest(count, total).proportion_ci(LEVEL, method="wilson")
    return [100 * float(interval.low), 100 * float(interval.high)]
