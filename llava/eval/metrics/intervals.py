"""Statistics of runs: Wilson's interval of a share, the sign test, and the clustered bootstrap of paired scores.

Every quoted score is 100 · Σ_t (Σ_q num[t, q]) / (Σ_q den[t, q]) over questions q: an accuracy is one such ratio t, an
MME sum two per task (acc and acc+). The bootstrap draws clusters of questions that share an image, with replacement
(B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993), and computes both runs' scores on the same draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from llava.eval.metrics.answer_files import Key

Ratio = Mapping[Key, tuple[float, float]]
"""Numerator and denominator of a question's part of a score."""

LEVEL = 0.95
_DRAWS_AT_ONCE = 1 << 22


def share_interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share, in percent (E. B. Wilson, 1927); (0, 100) of nothing."""
    if not total:
        return 0.0, 100.0
    z, share = NormalDist().inv_cdf((1 + LEVEL) / 2), count / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low, high = ((middle + sign * half) / (1 + z * z / total) for sign in (-1, 1))
    return 100 * max(0.0, low), 100 * min(1.0, high)


def sign_test(fixed: int, broken: int) -> float:
    """Two-sided exact p-value that answers change for the better as often as for the worse.

    For scores of 0 and 1 this is McNemar's exact test. It takes questions for independent, also those of one image.
    """
    total, fewer = fixed + broken, min(fixed, broken)
    return min(1.0, 2 * sum(math.comb(total, count) for count in range(fewer + 1)) / 2**total)


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
    """Clusters of questions that the bootstrap draws together: cluster number per question, stratum per cluster."""

    of: Mapping[Key, int]
    strata: np.ndarray

    @property
    def count(self) -> int:
        """Number of clusters."""
        return len(self.strata)

    @classmethod
    def by_image(
        cls,
        keys: Sequence[Key],
        images: Mapping[Key, str] | None,
        stratum: Callable[[Key], str] = lambda key: "",
    ) -> Clusters:
        """Questions about one image form a cluster, a question without an image one of its own.

        With `images` None, for want of the question file, the questions of one id form a cluster: those of one image in
        MME and TextVQA, single questions in GQA.
        Clusters are drawn within their stratum, such as MME's tasks, since its score is a sum over tasks.
        """
        numbers: dict[str, int] = {}
        of, strata = {}, {}
        for key in keys:
            name = key[0] if images is None else images.get(key, repr(key))
            of[key] = numbers.setdefault(name, len(numbers))
            strata[of[key]] = stratum(key)
        _, codes = np.unique(list(strata.values()), return_inverse=True)
        return cls(of, codes)

    def terms(self, ratios: Sequence[Ratio]) -> Terms:
        """The sums over each cluster of a score's ratios."""
        num, den = np.zeros((2, self.count, len(ratios)))
        for column, ratio in enumerate(ratios):
            for key, (above, below) in ratio.items():
                num[self.of[key], column] += above
                den[self.of[key], column] += below
        return Terms(num, den)


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


def _draws(strata: np.ndarray, resamples: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield draw counts per cluster, float64 [n, clusters], in chunks of `resamples` rows in total."""
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
