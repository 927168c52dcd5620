"""Labels: LLaVA's `v1` and `plain` rules, read slowly; chat templates; what cannot be labelled is named."""

import pytest
from llava_fixtures import LLAMA, LLAVA, write_tokenizer

from llava.cli import UserError
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_tokenizer
from llava.model.inputs import Turn, inputs_for
from llava.model.language_model.configuration_llava import LlavaConfig
from llava.train.labels import encode

CONVERSATIONS = [
    [Turn("What is the colour?", 1, "blue")],
    [Turn("Is it small?", 1, "no, 42"), Turn("Where is it?", 0, "on the left\nof the square"), Turn("é?", 0, "日本 ü")],
    [Turn("", 1, "  a circle "), Turn("USER: again", 0, "ASSISTANT says 7")],
    [Turn("What is 4?", 0, "2")],
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder, LlavaConfig(**LLAMA | LLAVA))


def inputs(tokenizer, version):
    return inputs_for(tokenizer, None, LlavaConfig(**LLAMA | LLAVA), version)


def llavas_labels(turns, tokenizer):
    """LLaVA's v1 rule: walk over the rounds between </s>, count the tokens of each and of its instruction."""
    conversation = conv_templates["v1"].copy()
    for turn in turns:
        conversation.append_message("USER", "<image>\n" * turn.images + turn.question)
        conversation.append_message("ASSISTANT", turn.answer)
    text = conversation.get_prompt()
    row = tokenizer_image_token(text, tokenizer)
    labels = list(row)
    labels[0] = IGNORE_INDEX
    place = 1
    for number, part in enumerate(text.split("</s>")[:-1]):
        question, _ = part.split(" ASSISTANT: ", 1)
        # what follows an end token is its continuation, not a text of its own: no word mark is put before it
        whole = len(tokenizer_image_token(part if number == 0 else "</s>" + part, tokenizer))
        asked = question + " ASSISTANT:"
        length = whole if number == 0 else whole - 1
        instruction = len(tokenizer_image_token(asked if number == 0 else "</s>" + asked, tokenizer)) - (
            1 if number == 0 else 2
        )
        labels[place : place + instruction] = [IGNORE_INDEX] * instruction
        place += length
    assert place == len(row)
    return row, labels


@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_v1_is_llavas_rule(tokenizer, turns):
    row, labels = encode(inputs(tokenizer, "v1"), turns, "here")
    expected_row, expected = llavas_labels(turns, tokenizer)
    assert row == expected_row
    assert labels == expected
    trained = tokenizer.decode([label for label in labels if label != IGNORE_INDEX])
    assert trained.replace(" ", "") == "".join(f"{turn.answer}</s>" for turn in turns).replace(" ", "")


def test_plain_trains_all_but_the_first_two_tokens(tokenizer):
    row, labels = encode(inputs(tokenizer, "plain"), [Turn("Describe it.", 1, "a red square")], "here")
    assert row == tokenizer_image_token("<image>a red square\n", tokenizer) and row[1] == IMAGE_TOKEN_INDEX
    assert labels == [IGNORE_INDEX] * 2 + row[2:]
    with pytest.raises(UserError, match="here: version 'plain' takes one turn with one <image>"):
        encode(inputs(tokenizer, "plain"), CONVERSATIONS[1], "here")


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl", "llava_onevision"])
def test_chat_templates_train_answers_and_what_ends_them(tmp_path, name):
    from family_checkpoints import write_family

    from llava.model.formats import read_transformers_config
    from llava.model.processors import load_processor

    folder = write_family(tmp_path / name, name)
    config = read_transformers_config(folder)
    processor = load_processor(folder, config)
    made = inputs_for(processor.tokenizer, processor, config)
    turns = [Turn("Is it small?", 1, "no, 42"), Turn("What is it?", 0, "a red square")]
    row, labels = encode(made, turns, "here")
    assert row.count(made.marker) == 1
    end = processor.tokenizer.eos_token
    trained = processor.tokenizer.decode([label for label in labels if label != IGNORE_INDEX])
    assert trained.replace(" ", "") == f"no,42{end}aredsquare{end}"
    first = next(place for place, label in enumerate(labels) if label != IGNORE_INDEX)
    asked = made.encode([Turn("Is it small?", 1)])
    assert row[: len(asked)] == asked and first >= len(asked)


def test_what_cannot_be_labelled_names_the_sample(tokenizer):
    made = inputs(tokenizer, "v1")
    for answer, message in [
        ("", "answer 1 is empty"),
        ("a <unk> b", "special token <unk>"),
        ("<image>", "token <image>"),
    ]:
        with pytest.raises(UserError, match=f"here: .*{message}"):
            encode(made, [Turn("a", 0, answer)], "here")
    made.transcript = lambda turns: made.prompt(turns).replace("red", "blue")
    with pytest.raises(UserError, match="here: the chat template changes answer 1"):
        encode(made, [Turn("a", 0, "red")], "here")
