"""From conversations to tensors: the ids that LLaVA's prompt gives, answers as targets, rows padded to one width."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import sentencepiece
import torch

from llava.conversation import conv_templates
from llava.tiny.pieces import train_pieces
from llava.train.tiny.conversations import Turn

BOS, EOS = 1, 2
IGNORED = -100


@dataclass(frozen=True)
class Packed:
    """B images with K conversations of at most S tokens and T turns each.

    ids, targets:
        int64 [B, K, S]; the target of a token is the next one where that belongs to an answer, else -100
    ends:
        int64 [B, K, T] index of the last prompt token of every turn (0 for a turn that is not there)
    turns:
        int64 [B, K, S] the turn that a token belongs to
    """

    ids: torch.Tensor
    targets: torch.Tensor
    ends: torch.Tensor
    turns: torch.Tensor


@lru_cache(maxsize=1)
def _processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=train_pieces())


@lru_cache(maxsize=50_000)
def _word(text: str) -> tuple[int, ...]:
    return tuple(_processor().encode(text)) if text else (_processor().piece_to_id("▁"),)


def encode(text: str) -> list[int]:
    """Return the ids of a text, as the tokenizer gives them: no piece reaches across a space, so words are cached."""
    return [piece for word in text.split(" ") for piece in _word(word)]


def characters(ids: Sequence[int]) -> list[str]:
    """Return the characters that each token stands for, without spaces."""
    return [_processor().id_to_piece(piece).replace("▁", "") for piece in ids]


def prefix_ids() -> list[int]:
    """Return the ids before the image in the vicuna_v1 prompt."""
    template = conv_templates["vicuna_v1"]
    return [BOS, *encode(f"{template.system}{template.sep}{template.roles[0]}: ")]


def conversation_ids(turns: Sequence[Turn]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the ids after the image, and for each turn where its answer begins and ends (with `</s>`)."""
    user, assistant = conv_templates["vicuna_v1"].roles
    ids: list[int] = []
    answers = []
    for n, turn in enumerate(turns):
        ids += encode(f"{user}: {turn.text} {assistant}:" if n else f"\n{turn.text} {assistant}:")
        start = len(ids)
        ids += [*encode(turn.answer), EOS]
        answers.append((start, len(ids)))
    return ids, answers


def pack(images: Sequence[Sequence[Sequence[Turn]]]) -> Packed:
    """Pack the same number of conversations about each image."""
    encoded = [[conversation_ids(turns) for turns in conversations] for conversations in images]
    width = max(len(ids) for image in encoded for ids, _ in image) - 1
    most = max(len(answers) for image in encoded for _, answers in image)
    shape = (len(encoded), len(encoded[0]))
    ids = np.zeros((*shape, width), np.int64)
    targets = np.full((*shape, width), IGNORED, np.int64)
    ends = np.zeros((*shape, most), np.int64)
    turns = np.zeros((*shape, width), np.int64)
    for b, image in enumerate(encoded):
        for k, (tokens, answers) in enumerate(image):
            ids[b, k, : len(tokens) - 1] = tokens[:-1]
            for n, (start, stop) in enumerate(answers):
                targets[b, k, start - 1 : stop - 1] = tokens[start:stop]
                ends[b, k, n] = start - 1
                turns[b, k, stop:] = n + 1 if n + 1 < len(answers) else n
    return Packed(*(torch.from_numpy(x) for x in (ids, targets, ends, turns)))


def vocabulary_size() -> int:
    """Return the number of pieces."""
    return len(_processor())
