"""What the two lmms-eval tasks of this folder do with a row of their data (`scripts/lmms/check.py` writes it)."""

from __future__ import annotations

from typing import Any

from PIL import Image

from llava.eval.benchmarks.gqa import judge

CHOICES = ["Yes", "No"]


def visuals(row: dict[str, Any]) -> list[Image.Image]:
    """The row's image."""
    with Image.open(row["image"]) as image:
        return [image.convert("RGB")]


def question(row: dict[str, Any]) -> str:
    """The question with its instruction, as it is in LLaVA's question file."""
    return row["text"]


def answer(row: dict[str, Any]) -> str:
    """The reference answer."""
    return row["answer"]


def choices(row: dict[str, Any]) -> list[str]:
    """What may be answered; lmms-eval puts a space before each."""
    return CHOICES


def answer_index(row: dict[str, Any]) -> int:
    """The reference answer's place among `choices`."""
    return CHOICES.index(row["answer"])


def exact_match(row: dict[str, Any], results: list[str]) -> dict[str, float]:
    """GQA's rule, in percent: what `llava.eval.benchmarks.gqa` averages."""
    return {"accuracy": 100 * judge(results[0], row)}
