"""What a calibration may claim: agreement on questions it never looked at, with an exact interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from llava.eval.scoring.answer_files import parse_answer, read_jsonl

LEVEL = 0.95


def exact_interval(count: int, total: int) -> tuple[float, float]:
    """Clopper and Pearson's 95% interval of a share (Biometrika 26, 1934): it covers at least 95%, for any share."""
    interval = binomtest(count, total).proportion_ci(LEVEL, method="exact")
    return float(interval.low), float(interval.high)


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
