"""LLaVA-1.5's instructions after a question; each benchmark's file has its whole `prompt`.

A question file's "text" is the whole text, the loader adds the conversation template only. LLaVA's eval.zip has the
texts of GQA, MME, TextVQA, POPE, VQAv2, VizWiz and MM-Vet ready; for ScienceQA and MMBench LLaVA's own loaders add the
instruction (`--single-pred-prompt`), here `llava.eval.prepare` writes it into the question file.
"""

from __future__ import annotations

from collections.abc import Mapping

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def short_answer(question: str) -> str:
    """GQA, POPE, VQAv2: the question, then the short-answer instruction on a line of its own."""
    return f"{question}\n{SHORT}"


def with_options(question: str, choices: Mapping[str, str]) -> str:
    """A question and its options, one "A. …" per line, then the instruction to answer with a letter."""
    return "\n".join([question, *(f"{letter}. {choice}" for letter, choice in choices.items()), LETTER])
