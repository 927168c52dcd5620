"""Prompts, tokens and pixels: what LLaVA feeds its model, to the character."""

import numpy as np
import pytest
import sentencepiece
import torch
from llava_fixtures import write_tokenizer
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates, find_template
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    expand2square,
    get_model_name_from_path,
    process_images,
    tokenizer_image_token,
)
from llava.model.builder import load_tokenizer
from llava.model.language_model.configuration_llava import LlavaConfig
from llava.utils import pick_device, pick_dtype

SYSTEM_V1 = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def ask(mode, *turns):
    conversation = conv_templates[mode].copy()
    for i, turn in enumerate(turns):
        conversation.append_message(conversation.roles[i % 2], turn)
    return conversation.get_prompt()


@pytest.mark.parametrize("mode", ["v1", "vicuna_v1"])
def test_v1_prompts(mode):
    assert ask(mode, "<image>\nWhat?", None) == f"{SYSTEM_V1} USER: <image>\nWhat? ASSISTANT:"
    assert (
        ask(mode, "<image>\nWhat?", "A cat.", "Where?", None)
        == f"{SYSTEM_V1} USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:"
    )


def test_llava_v1_says_human_but_asks_a_user():
    system = SYSTEM_V1.replace("user", "human")
    assert ask("llava_v1", "Hi", None) == f"{system} USER: Hi ASSISTANT:"


def test_v0_prompts():
    system = SYSTEM_V1.replace("user", "human")
    assert ask("llava_v0", "Hi", "Yes", "Go", None) == f"{system}###Human: Hi###Assistant: Yes###Human: Go###Assistant:"
    with pytest.raises(ValueError, match="'v0' .* was removed: .*; known: v1, vicuna_v1, llama_2, plain"):
        find_template("v0")


def test_llama_2_prompts():
    system = (
        "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
        "provides, and assist the user with a variety of tasks using natural language."
    )
    opening = f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n<image>\nWhat? [/INST]"
    assert ask("llava_llama_2", "<image>\nWhat?", None) == opening
    assert (
        ask("llava_llama_2", "<image>\nWhat?", "A cat.", "Where?", None)
        == f"{opening} A cat. </s><s>[INST] Where? [/INST]"
    )
    prompt = ask("llama_2", "Hi", None)
    assert prompt.startswith("[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer")
    assert "while being safe.  Your answers" in prompt and "positive in nature.\n\nIf a question" in prompt
    assert prompt.endswith("please don't share false information.\n<</SYS>>\n\nHi [/INST]")
    with pytest.raises(ValueError, match="must open with a message of USER"):
        ask("llama_2", None)


def test_plain_and_mpt_prompts():
    assert ask("plain", "<image>", "a cat") == "<image>a cat".replace(">", ">\n")
    assert ask("mpt", "Hi", None) == (
        "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The assistant gives helpful "
        "and honest answers.<|im_end|><|im_start|>user\nHi<|im_end|><|im_start|>assistant\n"
    )


def test_templates_are_not_shared_state():
    first, second = conv_templates["v1"].copy(), conv_templates["v1"].copy()
    first.append_message("USER", "Hi")
    other = first.copy()
    other.messages[0][1] = "changed"
    assert (len(first.messages), first.messages[0][1], len(second.messages)) == (1, "Hi", 0)
    with pytest.raises(TypeError, match="call .copy()"):
        conv_templates["v1"].append_message("USER", "Hi")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def pieces(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder, LlavaConfig(vocab_size=320, mm_use_im_patch_token=False))


@pytest.mark.parametrize(
    "prompt",
    [
        f"{SYSTEM_V1} USER: <image>\nWhat is the colour of the small circle? ASSISTANT:",
        "<image>\nWhat?",
        "<image><image>",
        "<image> <image> what  now",
        "what <image>",
        "no image é 漢 🙂 42",
        "",
    ],
)
def test_chunks_tokenise_as_sentencepiece_does(tokenizer, pieces, prompt):
    chunks = [pieces.encode(chunk) for chunk in prompt.split("<image>")]
    expected = [tokenizer.bos_token_id, *chunks[0]]
    for chunk in chunks[1:]:
        expected += [IMAGE_TOKEN_INDEX, *chunk]
    assert tokenizer_image_token(prompt, tokenizer) == expected
    tensor = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")
    assert tensor.dtype == torch.long and tensor.tolist() == expected


def test_the_chunk_after_an_image_begins_with_the_word_mark_and_a_newline(tokenizer):
    ids = tokenizer_image_token("USER: <image>\nWhat", tokenizer)
    after = ids[ids.index(IMAGE_TOKEN_INDEX) + 1 :]
    assert tokenizer.convert_ids_to_tokens(after[:2]) == ["▁", "<0x0A>"]
    assert tokenizer.bos_token_id not in ids[1:]


def test_tokenizer_json_gives_the_same_tokens(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists() and not (tmp_path / "tokenizer.model").exists()
    other = load_tokenizer(tmp_path, LlavaConfig(vocab_size=320, mm_use_im_patch_token=False))
    for prompt in ("a <image>\nWhat? 漢", "<image> two</s>USER: b"):
        assert tokenizer_image_token(prompt, other) == tokenizer_image_token(prompt, tokenizer)
    assert other.padding_side == "left" and other.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("settings", "expected"), [({"legacy": False}, "USER"), ({"legacy": None}, "▁USER"), ({"legacy": True}, "▁USER")]
)
def test_text_after_an_end_of_turn_follows_the_legacy_key(tmp_path, settings, expected):
    write_tokenizer(tmp_path, **settings)
    tokenizer = load_tokenizer(tmp_path, LlavaConfig(vocab_size=320, mm_use_im_patch_token=False))
    ids = tokenizer("a</s>USER").input_ids
    after = ids[ids.index(tokenizer.eos_token_id) + 1 :]
    assert "".join(tokenizer.convert_ids_to_tokens(after)) == expected


def test_special_tokens_and_padding(folder, tmp_path):
    config = {"vocab_size": 330, "mm_use_im_patch_token": True, "mm_use_im_start_end": True}
    tokenizer = load_tokenizer(folder, LlavaConfig(**config))
    assert tokenizer("<im_start><im_end><im_patch>").input_ids[1:] == [320, 321, 322]
    assert tokenizer.pad_token_id == tokenizer.unk_token_id == 0
    batch = tokenizer(["a", "a red square"], padding=True)
    assert batch["input_ids"][0][0] == 0 and batch["attention_mask"][0][0] == 0
    with pytest.raises(ValueError, match="no tokenizer"):
        load_tokenizer(tmp_path, LlavaConfig())


def test_unknown_tensor_type(tokenizer):
    with pytest.raises(ValueError, match="'np'"):
        tokenizer_image_token("a", tokenizer, return_tensors="np")


def test_keywords_stop_each_sample_on_its_own(tokenizer):
    def tokens(text):
        return tokenizer(text, add_special_tokens=False).input_ids[-6:]

    rows = [tokens("a red square###"), tokens("the small circle")]
    length = min(map(len, rows))
    output = torch.tensor([row[-length:] for row in rows])
    stop = KeywordsStoppingCriteria(["###"], tokenizer, input_ids=torch.zeros(1, 50))
    assert stop(output, None).tolist() == [True, False]
    assert stop(output[:, :0], None).tolist() == [False, False]


@pytest.mark.parametrize(("size", "corner"), [((9, 4), (0, 2)), ((4, 9), (2, 0)), ((5, 5), (0, 0))])
def test_expand2square_centres_the_image(size, corner):
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    square = np.asarray(expand2square(Image.fromarray(pixels), (1, 2, 3)))
    side, (x, y) = max(size), corner
    assert square.shape == (side, side, 3)
    inside = np.zeros((side, side), dtype=bool)
    inside[y : y + size[1], x : x + size[0]] = True
    assert np.array_equal(square[inside], pixels.reshape(-1, 3))
    assert (square[~inside] == (1, 2, 3)).all()


def test_process_images_pads_with_the_mean_colour_and_normalises():
    size = {"height": 14, "width": 14}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 14}, crop_size=size)
    wide, grey = Image.new("RGB", (28, 14), (255, 0, 0)), Image.new("LA", (14, 14), (51, 0))
    padded = process_images([wide, grey], processor, LlavaConfig(image_aspect_ratio="pad"))
    assert padded.shape == (2, 3, 14, 14) and padded.dtype == torch.float32
    assert padded[0, :, 0].abs().max() < 0.02  # the mean colour is 0 after normalisation, up to rounding to a byte
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)
    torch.testing.assert_close(padded[0, :, 7, 7], red)
    cropped = process_images([wide], processor, LlavaConfig(image_aspect_ratio="square"))
    torch.testing.assert_close(cropped[0], red[:, None, None].expand(3, 14, 14))
    with pytest.raises(ValueError, match="anyres_max_9"):
        process_images([wide], processor, LlavaConfig(image_aspect_ratio="anyres_max_9"))


def test_model_names():
    names = {"liuhaotian/llava-v1.5-7b": "llava-v1.5-7b", "/a/llava/checkpoint-9/": "llava_checkpoint-9", "x": "x"}
    assert {path: get_model_name_from_path(path) for path in names} == names


def test_devices_and_dtypes():
    device = pick_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else device.type) and pick_device(device) == device
    assert pick_dtype(None, torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.float16
    assert pick_dtype("bf16", torch.device("cpu")) == pick_dtype("torch.bfloat16", torch.device("cpu"))
    for bad in ("gpu", "cuda:77"):
        with pytest.raises(ValueError, match=bad):
            pick_device(bad)
    for bad in ("int8", torch.int8):
        with pytest.raises(ValueError, match="not supported"):
            pick_dtype(bad, device)
