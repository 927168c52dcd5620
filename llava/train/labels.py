"""Token ids and labels of a training conversation: the answers and what ends each are trained, nothing else.

The text is what the model reads at inference, from the same chat template or conversation template. Where an answer
begins and ends is known from rendering the conversation turn by turn, and labels follow from the tokens' character
offsets, so that no rule depends on a tokenizer. For LLaVA's `v1` and `plain` this gives LLaVA's own labels; where those
would be a mismatch (LLaVA then sets the sample's loss to zero), this raises an error that names the sample.
"""

from __future__ import annotations

from collections.abc import Sequence

from llava.cli import UserError
from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX
from llava.mm_utils import image_token_offsets
from llava.model.inputs import Inputs, Turn
from llava.model.inputs.convention import ConventionInputs

Span = tuple[int, int]


def encode(inputs: Inputs, turns: Sequence[Turn], place: str) -> tuple[list[int], list[int]]:
    """Return a conversation's row of token ids, with one `inputs.marker` per image, and its labels (-100: not trained).

    Raises `UserError` with `place` for an empty answer, for text that holds a special token or an image marker, for a
    chat template that rewrites earlier turns, and for a token that is partly answer and partly not.
    """
    special = (*inputs.reserved, *inputs.tokenizer.all_special_tokens)
    for number, turn in enumerate(turns, 1):
        if not turn.answer.strip():
            raise UserError(f"{place}: answer {number} is empty")
        for text in (turn.question, turn.answer):
            if held := next((token for token in special if token in text), None):
                raise UserError(f"{place}: the text of turn {number} holds the special token {held}: take it out")
    if isinstance(inputs, ConventionInputs) and inputs.name == "plain":
        text, spans = _plain(turns, place)
    else:
        text, spans = _render(inputs, turns, place)
    row, offsets = _tokenize(inputs, text)
    labels = [IGNORE_INDEX] * len(row)
    following = 0
    for index, (start, end) in enumerate(offsets):
        while following < len(spans) and start >= spans[following][1]:
            following += 1
        if end <= start or following == len(spans) or end <= spans[following][0]:
            continue
        if start < spans[following][0] or end > spans[following][1]:
            piece = inputs.tokenizer.convert_ids_to_tokens(row[index])
            raise UserError(
                f"{place}: the token {piece!r} is only in part of answer {following + 1}: the tokenizer joins them"
            )
        labels[index] = row[index]
    return row, labels


def _plain(turns: Sequence[Turn], place: str) -> tuple[str, list[Span]]:
    """Return LLaVA's caption format: the image, the caption, a line end; the human's text is left out."""
    if len(turns) != 1 or turns[0].images != 1:
        raise UserError(f"{place}: version 'plain' takes one turn with one <image> and its caption")
    text = f"{DEFAULT_IMAGE_TOKEN}{turns[0].answer}\n"
    return text, [(len(DEFAULT_IMAGE_TOKEN), len(text))]


def _render(inputs: Inputs, turns: Sequence[Turn], place: str) -> tuple[str, list[Span]]:
    """Return a conversation's text and the characters of its answers, with what ends each of them.

    Where the template writes no end token after an answer, the tokenizer's own takes the place of the white space.
    """
    text, rendered, spans = "", "", []
    for number, turn in enumerate(turns):
        prompt = inputs.prompt([*turns[:number], Turn(turn.question, turn.images)])
        whole = inputs.transcript(turns[: number + 1])
        if not (prompt.startswith(rendered) and _squeezed(whole).startswith(_squeezed(prompt))):
            raise UserError(f"{place}: the chat template writes turn {number + 1} differently once it is answered")
        # LLaVA-OneVision's has a space before the answer's line that the model is not given when it answers
        start = len(prompt) if whole.startswith(prompt) else max(whole.rfind(turn.answer.strip()), 0)
        said = whole[start:]
        if turn.answer.strip() not in said:
            raise UserError(f"{place}: the chat template changes answer {number + 1}")
        ending, end_token = said.rstrip(), inputs.tokenizer.eos_token
        tail = said[len(ending) :]
        if end_token and not ending.endswith(inputs.stop_string or end_token):
            ending, tail = ending + end_token, ""
        text += prompt[len(rendered) :]
        spans.append((len(text), len(text) + len(ending)))
        text, rendered = text + ending + tail, whole
    return text, spans


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _tokenize(inputs: Inputs, text: str) -> tuple[list[int], list[Span]]:
    """Return the row of a text, and the characters of each token; (0, 0) for a token that stands for none."""
    row = inputs.tokenize(text)
    if isinstance(inputs, ConventionInputs):
        return row, image_token_offsets(text, inputs.tokenizer)
    begun = inputs.tokenizer.bos_token is not None and text.startswith(inputs.tokenizer.bos_token)
    return row, inputs.tokenizer(text, add_special_tokens=not begun, return_offsets_mapping=True).offset_mapping
