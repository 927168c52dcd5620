"""The exact question texts of the benchmarks, as LLaVA-1.5 was evaluated: question, options, instruction.

A question file's "text" is one of these, whole; the loader adds nothing to it but the conversation template. LLaVA's
eval.zip has the texts of GQA, MME, TextVQA, POPE, VQAv2, VizWiz and MM-Vet ready, instruction included; for ScienceQA
and MMBench LLaVA's own loaders add the instruction (`--single-pred-prompt`), here `llava.eval.prepare` writes it into
the question file. MMStar is not in LLaVA and gets MMBench's instruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
LETTERS = "ABCDE"
_MME_OWN = "Please answer yes or no."


def short_answer(question: str) -> str:
    """GQA, POPE, VQAv2: the question, then the short-answer instruction on a line of its own."""
    return f"{question}\n{SHORT}"


def mme(question: str) -> str:
    """MME: its own "Please answer yes or no." gives way to the short-answer instruction."""
    return short_answer(question.replace(_MME_OWN, "").strip())


def textvqa(question: str, ocr_tokens: Sequence[str]) -> str:
    """TextVQA: only the first letter is upper case; the OCR line is there even when no token was found."""
    return f"{question.capitalize()}\nReference OCR token: {', '.join(ocr_tokens)}\n{SHORT}"


def vizwiz(question: str) -> str:
    """VizWiz: only the first letter is upper case, and the model is told how to decline."""
    return f"{question.capitalize()}\n{UNANSWERABLE}\n{SHORT}"


def options(question: str, choices: Mapping[str, str]) -> str:
    """A question and its options, one "A. …" a line, without an instruction."""
    return "\n".join([question, *(f"{letter}. {choice}" for letter, choice in choices.items())])


def science_qa(question: str, choices: Sequence[str], hint: str) -> str:
    """ScienceQA in LLaVA's CQM-A form: context where there is one, question, options, instruction."""
    context = f"Context: {hint.strip()}\n" if hint.strip() else ""
    return f"{context}{options(question, dict(zip(LETTERS, choices, strict=False)))}\n{LETTER}"


def mmbench(question: str, choices: Mapping[str, str], hint: str | None) -> str:
    """MMBench: the hint where there is one, question, options, instruction."""
    asked = question if hint is None else f"{hint}\n{question}"
    return f"{options(asked, choices)}\n{LETTER}"


def mmstar(question: str) -> str:
    """MMStar, whose questions hold their options already: the instruction is added."""
    return f"{question.strip()}\n{LETTER}"
