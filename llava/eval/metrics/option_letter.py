"""Reading the chosen option's letter out of an answer: the rules of MMBench and of MMStar."""

from __future__ import annotations

import re
from collections.abc import Mapping

_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
_LAST_WORDS = 5
_MMSTAR_LEADS = ("", "(", "option ", "the answer is ")


def infer_option(answer: str, choices: Mapping[str, str]) -> str | None:
    """The option that MMBench's evaluation (VLMEvalKit, without its language model) finds in an answer, or None.

    In this order: the only option letter that stands as a word of its own, where it is among the last five words
    (punctuation is no word); the letter of "answer is X"; the only option whose text the answer contains, unless the
    answer is more than twice as long as all options together. "Z" and no letter is how a model declines.

    Args:
        answer: the model's answer.
        choices: letter → text of the options that the question has.

    """
    words = answer.translate(_MARKS).split()
    letters = [letter for letter in choices if letter in words]
    if len(letters) == 1 and words.index(letters[0]) > len(words) - _LAST_WORDS:
        return letters[0]
    if not letters and "Z" in words:
        return None
    sentence = _ANSWER_IS.search(answer)
    if sentence is not None and sentence.group(1).upper() in choices:
        return sentence.group(1).upper()
    if len(answer) > 2 * sum(len(choice) for choice in choices.values()):
        return None
    named = [letter for letter, choice in choices.items() if choice.lower() in answer.lower()]
    return named[0] if len(named) == 1 else None


def says_option(answer: str, letter: str) -> bool:
    """Whether MMStar's evaluation reads `letter` in an answer.

    Capitals aside, the answer must begin with the letter, or with it after "(", "option " or "the answer is ". What
    follows does not matter: "Because …" says B.
    """
    text = answer.lower().strip().replace("\n", " ")
    wanted = letter.lower().strip()
    return any(text.startswith(lead + wanted) for lead in _MMSTAR_LEADS)
