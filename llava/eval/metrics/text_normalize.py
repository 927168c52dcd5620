"""Answer normalisation of the VQA evaluation: EvalAI's form, as TextVQA and VizWiz use it, and VQAv2's own.

`normalize_answer` has the rules of the official VQA evaluation in the order that EvalAI and M4C apply them, quirks
included, because a score is only comparable under the same rules:
- lower case; commas and question marks are deleted wherever they stand ("1,000" → "1000"); "'s" is split off
- a punctuation mark that has a space beside it somewhere in the text is deleted, any other becomes a space ("t-shirt" →
  "t shirt")
- a period is deleted unless a digit follows it ("3.5" stays); at most 32 periods are deleted
- number words up to ten become digits ("none" too: "0"), articles are dropped, contractions get their apostrophe

`normalize_vqa` is the official VQAv2 evaluation, which leaves out the second line's rules and treats "," and "?" like
any other mark; a comma between digits makes it delete all marks.
"""

from __future__ import annotations

import re

# Each form with exactly one apostrophe left out is mapped to the full form: "dont" → "don't", "wouldn'tve" →
# "wouldn't've". The official table's other entries can never apply: words are looked up after lower-casing ("Im",
# "Ive") and after "'s" was split off ("let's", "she's").
_CONTRACTIONS = tuple(
    word
    for line in (
        "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't",
        "he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've",
        "must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't",
        "shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's",
        "something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've",
        "they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd",
        "where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't",
        "wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've",
    )
    for word in line.split()
)
# The official table has this one pair the other way round.
_INVERTED = {"somebody'd": "somebodyd"}
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ARTICLES = frozenset({"a", "an", "the"})
# Apostrophe, colon, %, & and the like are kept.
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32


def _one_apostrophe_dropped(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, character in enumerate(word) if character == "'"]


_FULL_FORMS = {short: word for word in _CONTRACTIONS for short in _one_apostrophe_dropped(word)} | _INVERTED
_DIGITS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}


def _strip_punctuation(text: str) -> str:
    stripped = text
    delete_all = _DIGIT_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space or delete_all else " ")
    return _PERIOD.sub("", stripped, count=_MAX_PERIODS)


def normalize_answer(text: str) -> str:
    """An answer in the form in which the official evaluation compares it, e.g. "The T-Shirts!" → "t shirts"."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def normalize_vqa(text: str) -> str:
    """An answer in the form in which VQAv2's own evaluation compares it, e.g. "Yes, a dog" → "yes dog"."""
    return _words(_strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip()).lower())


def _words(text: str) -> str:
    words = (_DIGITS.get(word, word) for word in text.split())
    return " ".join(_FULL_FORMS.get(word, word) for word in words if word not in _ARTICLES)
