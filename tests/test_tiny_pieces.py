"""The sentencepiece tokenizer: any text comes back, words are whole, a sign has three pieces, transformers agrees."""

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_tokenizer
from llava.model.language_model.configuration_llava import LlavaConfig
from llava.tiny.pieces import PieceTokenizer, train_pieces
from llava.tiny.worlds import DIGITS, HELDOUT_NUMBERS, LETTERS, SIGN_WORDS
from llava.train.tiny.card import EXAMPLES
from llava.train.tiny.packing import encode

TYPED = (
    "What is written on the sign?",
    "  two  spaces and a tab\tend ",
    "Größe, naïve, 漢字, שלום and 🙂👍🏽",
    "zebra quiz vodka 12345 x=y*{z}[0] <s> </s>",
    "line\n\nline\r\n",
)


@pytest.fixture(scope="module")
def processor():
    return sentencepiece.SentencePieceProcessor(model_proto=train_pieces())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    written = PieceTokenizer(512)
    written.save_pretrained(folder)
    loaded = load_tokenizer(folder, LlavaConfig(vocab_size=len(written)))
    assert len(loaded) == len(written)
    return loaded


def test_training_it_twice_gives_the_same_bytes():
    again = train_pieces.__wrapped__()
    assert again == train_pieces() and len(again) < 20_000


@pytest.mark.parametrize("text", TYPED)
def test_anything_typed_comes_back(processor, tokenizer, text):
    assert processor.decode(processor.encode(text)) == text
    if "<s>" not in text:  # to transformers that is the special token
        ids = tokenizer_image_token(f"a<image>{text}", tokenizer)[len(tokenizer("a").input_ids) + 1 :]
        assert tokenizer.decode(ids) == text
        assert ids == processor.encode(text)


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(text):
    processor = sentencepiece.SentencePieceProcessor(model_proto=train_pieces())
    if "\u2581" in text or "\0" in text:  # sentencepiece writes spaces as U+2581
        return
    assert processor.decode(processor.encode(text)) == text
    assert processor.unk_id() not in processor.encode(text)


def test_words_of_the_questions_are_single_pieces(processor):
    for question in EXAMPLES.values():
        words = question.removesuffix(" (MME pairs)").replace("?", "").replace('"CAT"', "").split()
        for word in words:
            assert len(processor.encode(word)) == 1, word


def test_every_sign_has_three_pieces_and_one_character_each(processor):
    for sign in (*SIGN_WORDS, *HELDOUT_NUMBERS):
        pieces = processor.encode(sign, out_type=str)
        assert pieces == ["▁" + sign[0], sign[1], sign[2]]
        assert processor.encode(f'say "{sign}"?', out_type=str)[1:] == ['▁"', *sign, '"?']
    for character in LETTERS + DIGITS:
        assert processor.encode(character, out_type=str) == ["▁" + character]


def test_roles_and_line_breaks_are_few_pieces(processor):
    pieces = processor.encode("\nWhat is it?\nAnswer ASSISTANT: Yes", out_type=str)
    assert pieces[:2] == ["▁\n", "What"] and pieces[-3:] == ["▁ASSISTANT", ":", "▁Yes"]
    assert processor.encode("USER:", out_type=str) == ["▁USER", ":"]


@pytest.mark.parametrize("text", ["", " ", "a  b ", "\nIs there a red cross?", 'say "7JX"?'])
def test_word_by_word_is_the_same_as_at_once(processor, text):
    assert encode(text) == (processor.encode(text) if text else [processor.piece_to_id("▁")])


def test_batches_are_padded_on_the_left_with_unk(tokenizer):
    batch = tokenizer(["Is there a red circle?", "Is"], padding=True)
    assert batch.input_ids[1][0] == tokenizer.unk_token_id == 0
    assert batch.input_ids[1][-2] == tokenizer.bos_token_id == 1 and tokenizer.eos_token_id == 2
