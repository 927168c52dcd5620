"""Judges: the score of one answer, `judge(text, references) -> float` in [0, 1].

`JUDGES` has the judges of `--judge`. `text` is the model's unchanged answer, `references` are the accepted answers;
each docstring says what is normalised and the source of the rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from llava.eval.metrics.text_normalize import normalize_answer

Judge = Callable[[str, Sequence[str]], float]

ANLS_THRESHOLD = 0.5
_LETTER_FIRST = re.compile(r"^\W*([A-Z])(?:[.):,]|\W*$)")
_LETTER_NAMED = re.compile(r"(?:answer|option)(?:\s+is)?\W+([A-Z])(?![\w'])", re.IGNORECASE)


def exact(text: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference; case, outer whitespace and final periods aside (GQA, which keeps spaces)."""
    return float(_bare(text) in map(_bare, references))


def vqa(text: str, references: Sequence[str]) -> float:
    """VQA accuracy: the mean, over each annotator left out, of min(1, matches among the others / 3).

    Both sides are normalised by `normalize_answer`. With fewer than four references no answer can be worth 1.
    Source: Antol et al., VQA, 2015; in this form M4C's evaluation of TextVQA.
    """
    wanted = normalize_answer(text)
    return soft_accuracy([normalize_answer(reference) == wanted for reference in references])


def soft_accuracy(agrees: Sequence[bool]) -> float:
    """VQA accuracy of an answer from whether it agrees with each annotator's."""
    matches = sum(agrees)
    return sum(min(1.0, (matches - left_out) / 3) for left_out in agrees) / len(agrees)


def yes_no(text: str, references: Sequence[str]) -> float:
    """1 if the first "yes" or "no" among the answer's words is a reference; an answer with neither is wrong.

    Case is ignored. MME and POPE have rules of their own (`llava.eval.benchmarks`); this one also reads "It is: yes".
    """
    said = next((word for word in re.findall(r"[a-z]+", text.lower()) if word in ("yes", "no")), None)
    return float(said in map(_bare, references))


def choice(text: str, references: Sequence[str]) -> float:
    """1 if the option letter that the answer names is a reference ("B").

    Read are "B", "B.", "(B)", "B. Vermont" and the only X of "the answer is X" or "option X"; anything else is wrong.
    The rule of LLaVA's ScienceQA evaluation, which reads no brackets.
    """
    first = _LETTER_FIRST.match(text)
    letters = {first.group(1)} if first else {letter.upper() for letter in _LETTER_NAMED.findall(text)}
    return float(len(letters) == 1 and letters <= {reference.strip().upper() for reference in references})


def anls(text: str, references: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity: the best 1 - distance / longer length, 0 where below 0.5.

    Case and repeated whitespace are ignored. Source: Biten et al., Scene Text Visual Question Answering, 2019.
    """
    best = max(_similarity(" ".join(text.lower().split()), " ".join(one.lower().split())) for one in references)
    return best if best > ANLS_THRESHOLD else 0.0


def contains(text: str, references: Sequence[str]) -> float:
    """1 if the answer contains a reference; case and whitespace aside (OCRBench, Liu et al., 2023)."""
    given = " ".join(text.lower().split())
    return float(any(" ".join(reference.lower().split()) in given for reference in references))


EXPECTED: dict[str | Judge, tuple[Callable[[Sequence[str]], bool], str]] = {
    "vqa": (
        lambda references: len(references) > 3,
        "at least 4 answers of annotators (VQA has ten; for one take exact)",
    ),
    "yes_no": (lambda references: {_bare(one) for one in references} <= {"yes", "no"}, "yes or no as the answer"),
    "choice": (
        lambda references: all(len(one.strip()) == 1 and one.strip().isalpha() for one in references),
        "a letter",
    ),
}
"""What a judge expects of a question's references: a test, and the words for it."""
JUDGES: dict[str, Judge] = {judge.__name__: judge for judge in (exact, vqa, yes_no, choice, anls, contains)}


def _bare(text: str) -> str:
    return text.strip().rstrip(".").lower()


def _similarity(a: str, b: str) -> float:
    """1 - Levenshtein distance / length of the longer string; 1 for two empty ones."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return 1 - row[-1] / (max(len(a), len(b)) or 1)
