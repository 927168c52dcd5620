"""How many answers may differ, and what may be claimed: agreement on other questions, with an exact interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy.stats import binom, binomtest

from llava.eval.metrics.answer_files import parse_answer, read_jsonl

LEVEL = 0.95
PASSING = 1 / 6


def exact_interval(count: int, total: int) -> tuple[float, float]:
    """Clopper and Pearson's 95% interval of a share (Biometrika 26, 1934): it covers at least 95%, for any share."""
    interval = binomtest(count, total).proportion_ci(LEVEL, method="exact")
    return float(interval.low), float(interval.high)


def bearable(samples: int, agreement: float) -> int:
    """Return how many answers may differ so that a setting of just this agreement passes in one of six cases at most.

    That is about one standard error below what the target gives up; 0 where even no difference at all comes more often.
    """
    return max(0, int(binom.ppf(PASSING, samples, 1 - agreement)) - 1) if agreement < 1 else 0


def texts_of(answers_file: Path) -> dict[tuple[str, str], str]:
    """The answers of a file by (question id, prompt)."""
    answers = (parse_answer(row, where) for where, row in read_jsonl(answers_file, "answers file"))
    return {(answer.question_id, answer.prompt or ""): answer.text.strip() for answer in answers}


def claim(dense: Path, pruned: Path, totals: Mapping[str, Any]) -> dict[str, Any]:
    """Agreement of two answers files, its interval, and what the pruned run cost as shares of dense."""
    before, after = texts_of(dense), texts_of(pruned)
    equal = sum(after[key] == text for key, text in before.items())
    low, high = exact_interval(equal, len(before))
    return {
        "questions": len(before),
        "equal": equal,
        "agreement": equal / len(before),
        "interval": [low, high],
        "flops": totals["flops_all_tokens"] / totals["dense_flops_all_tokens"],
        "visual_flops": totals["flops"] / totals["dense_flops"],
        "kv": totals["kv_bytes"] / totals["dense_kv_bytes"],
        "kept_tokens": totals["kept_tokens_mean"],
    }
