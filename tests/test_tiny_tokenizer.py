"""Tokenizer: the ids that the shipped weights were trained with, in code, on disk and through LLaVA's prompt."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, LlamaConfig

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.tiny.accuracy import KINDS
from llava.tiny.questions import SHORT_ANSWER, YES_OR_NO, ask, prompt_text
from llava.tiny.scenes import render
from llava.tiny.seeds import TEST
from llava.tiny.tokenizer import EOS, UNK, build_tokenizer, vocabulary

CHECKPOINT = Path(__file__).parents[1] / "playground" / "checkpoints" / "llava-tiny"
PREFIX = [1, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 16, 19, 20, 21, 22, 21, 12, 23, 24, 25, 26, 11, 27, 28, 29]
PREFIX += [17, 4, 30, 31]
# question, ids of "\n{question} ASSISTANT:", answer, its ids: recorded from the training code
RECORDED = [
    (
        "What color is the cross to the left of the red square?" + SHORT_ANSWER,
        [32, 45, 46, 48, 26, 72, 25, 26, 77, 85, 26, 63, 70, 89, 32, 33, 26, 34, 35, 9, 36, 37, 38, 39, 17, 5, 30],
        "purple",
        [67],
    ),
    (
        "Are there 3 white objects in this image?" + YES_OR_NO,
        [32, 6, 183, 170, 59, 133, 68, 57, 60, 61, 62, 89, 40, 41, 42, 38, 43, 17, 5, 30],
        "No",
        [76],
    ),
    (
        'Does the sign say "7JX"?',
        [32, 107, 180, 170, 28, 26, 51, 94, 31, 44, 102, 113, 127, 44, 89, 5, 30],
        "CAT",
        [142, 6, 123],
    ),
    ("Describe the image from top to bottom.", [32, 193, 26, 62, 194, 79, 25, 80, 17, 5, 30], "403", [134, 95, 98]),
]


@pytest.fixture(scope="module", params=["built", "shipped"])
def tokenizer(request):
    if request.param == "built":
        return build_tokenizer()
    return AutoTokenizer.from_pretrained(CHECKPOINT, config=LlamaConfig(), use_fast=False)


def test_the_vocabulary_is_the_trained_one():
    pieces = vocabulary()
    assert pieces[:6] == ["<pad>", "<s>", "</s>", "<unk>", " USER", " ASSISTANT"] and len(pieces) == 195
    recorded = "be4b6e492fa396983c05c4a84d77720837ad0a1de87914f1bbc9270effa6b33c"
    assert hashlib.sha256("\0".join(pieces).encode()).hexdigest() == recorded


@pytest.mark.parametrize(("question", "ids", "answer", "answer_ids"), RECORDED)
def test_recorded_ids(tokenizer, question, ids, answer, answer_ids):
    assert tokenizer("\n" + question + " ASSISTANT:").input_ids == [1, *ids]
    assert tokenizer(" " + answer, add_special_tokens=False).input_ids == answer_ids
    assert tokenizer.decode([*answer_ids, EOS], skip_special_tokens=True) == " " + answer


@pytest.mark.parametrize(("question", "ids", "answer", "answer_ids"), RECORDED)
def test_llavas_prompt_gives_prefix_image_question(tokenizer, question, ids, answer, answer_ids):
    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message(conversation.roles[0], "<image>\n" + question)
    conversation.append_message(conversation.roles[1], None)
    prompt = tokenizer_image_token(conversation.get_prompt(), tokenizer, IMAGE_TOKEN_INDEX)
    assert prompt == [*PREFIX, IMAGE_TOKEN_INDEX, *ids]


def test_everything_that_is_asked_is_known_and_decodes_to_itself(tokenizer):
    for seed in TEST[:40]:
        rng = np.random.default_rng(seed)
        _, scene = render(rng, sign_probability=1.0, card_probability=1.0)
        for question in filter(None, (ask(kind, scene, rng) for kind in KINDS)):
            for text in (question.text, prompt_text(question), " " + question.answer):
                ids = tokenizer(text).input_ids
                assert UNK not in ids and tokenizer.decode(ids, skip_special_tokens=True) == text


def test_unknown_words_are_spelt_and_unknown_characters_are_unk(tokenizer):
    ids = tokenizer("zebras é", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["z", "e", "b", "r", "a", "s", " ", "<unk>"]


def test_batches_are_padded_on_the_left(tokenizer):
    batch = tokenizer(["Is there a red circle?", "Is"], padding=True)
    assert batch.input_ids[1][0] == 0 and batch.input_ids[1][-2] == 1
    assert batch.attention_mask[1][0] == 0 and batch.attention_mask[1][-1] == 1
