"""How many answers may differ, and what may be claimed: agreement on other questions, with an exact interval."""

from __future__ import annotations

from typing import Any

from scipy.stats import binom, binomtest

from llava.eval.runner.run import Run

LEVEL = 0.95
PASSING = 1 / 6


def exact_interval(count: int, total: int) -> tuple[float, float]:
    """Clopper and Pearson's 95% interval of a share (Biometrika 26, 1934): it covers at least 95%, for any share."""
    interval = binomtest(count, total).proportion_ci(LEVEL, method="exact")
    return float(interval.low), float(interval.high)


def max_disagreements(samples: int, agreement: float) -> int:
    """Largest number of differing answers that a config of just this agreement meets with probability ≤ 1/6.

    That is about one standard error below what the target allows; 0 where even no difference is more likely than that.
    """
    return max(0, int(binom.ppf(PASSING, samples, 1 - agreement)) - 1) if agreement < 1 else 0


def held_out_agreement(dense: Run, pruned: Run) -> dict[str, Any]:
    """Agreement of two runs in [0, 1], its interval, and the costs of the pruned run as shares of dense."""
    found, costs = pruned.agreement(dense, dense.answers), pruned.costs
    return {
        "questions": found.count,
        "equal": found.equal,
        "agreement": found.equal / found.count,
        "interval": [*exact_interval(found.equal, found.count)],
        "flops": costs.flops_share,
        "visual_flops": costs.visual_flops_share,
        "kv": costs.kv_share,
        "kept_tokens": round(costs.mean_kept, 3),
    }
