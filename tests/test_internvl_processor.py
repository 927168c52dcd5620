"""InternVL's tokenizer, prompt and tiles, against sentencepiece, the published prompt and the published tiling rule."""

import json
import re

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st
from internvl_fixtures import (
    ADDED,
    LENGTH,
    SIDE,
    TOKENS,
    added_ids,
    added_tokens,
    make_model,
    write_internlm2_tokenizer,
    write_original,
    write_qwen2_tokenizer,
)
from llava_fixtures import write_json
from PIL import Image
from transformers.utils import is_torchvision_available

from llava.model.internvl.processor import SYSTEM_MESSAGE, load_processor, load_tokenizer

TEXTS = (
    "What is the colour?",
    " the  small\n circle ",
    "红色 or 蓝色? é😀",
    "<|im_start|>user\nno <img></img>42<|im_end|>",
    "",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("checkpoint") / "m", model=make_model())


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder, LENGTH)


def processor_of(folder, **changes):
    return load_processor(folder, json.loads((folder / "config.json").read_text()) | changes)


@pytest.mark.parametrize("dummy_prefix", [False, True])
@pytest.mark.parametrize("bos", [None, True, False])
def test_internlm2_ids_are_sentencepieces_between_the_added_tokens(tmp_path, dummy_prefix, bos):
    write_internlm2_tokenizer(tmp_path, dummy_prefix, **({} if bos is None else {"add_bos_token": bos}))
    tokenizer = load_tokenizer(tmp_path, LENGTH)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in TEXTS:
        expected = [] if bos is False else [1]
        for part in re.split(f"({'|'.join(map(re.escape, ADDED))})", text):
            expected += [added_ids()[part]] if part in ADDED else pieces.encode(part)
        assert tokenizer(text)["input_ids"] == expected
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected[bos is not False :]


@given(text=st.text(st.characters(exclude_characters="▁<", exclude_categories=["Cs", "Cc"]), max_size=30))
def test_internlm2_text_comes_back(tokenizer, text):
    ids = tokenizer(f"<|im_start|>{text}\n<|im_end|>")["input_ids"]
    assert tokenizer.decode(ids) == f"<s><|im_start|>{text}\n<|im_end|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"{text}\n"


def test_qwen2_added_tokens_keep_their_ids_and_nothing_precedes_a_prompt(tmp_path):
    write_qwen2_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path, LENGTH)
    text = "<|im_start|>user\nthe small circle<img><IMG_CONTEXT></img><|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert [ids[0], *ids[-4:]] == [added_ids()[token] for token in re.findall("<[^>]*>", text)]
    assert tokenizer.decode(ids) == text and tokenizer.decode(ids, skip_special_tokens=True) == "user\nthe small circle"
    assert tokenizer.padding_side == "left" and tokenizer.pad_token == "<|endoftext|>"


def without(*tokens):
    kept = {token: index for token, index in ({"<unk>": 0, "<s>": 1, "</s>": 2} | added_ids()).items()}
    return added_tokens({token: index for token, index in kept.items() if token not in tokens})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer_class": "LlamaTokenizer"}, "(LlamaTokenizer) does not load: expected InternLM2Tokenizer or Qwen2"),
        ({"added_tokens_decoder": {}}, "gives <img> the id None, expected one: its files are incomplete"),
        ({"added_tokens_decoder": without("<IMG_CONTEXT>")}, "gives <IMG_CONTEXT> the id None"),
        ({"added_tokens_decoder": without() | added_tokens({"<far>": LENGTH})}, f"{LENGTH}, the model only {LENGTH}"),
    ],
)
def test_a_tokenizer_that_cannot_serve_the_model_is_refused(tmp_path, settings, message):
    write_internlm2_tokenizer(tmp_path, **settings)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_tokenizer(tmp_path, LENGTH)


def test_ids_that_the_files_contradict_are_refused(tmp_path):
    write_qwen2_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] |= added_tokens({"unused310": 290})
    write_json(tmp_path / "tokenizer_config.json", settings)
    with pytest.raises(ValueError, match="gives unused310 the id 310, expected 290"):
        load_tokenizer(tmp_path, LENGTH)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no model")])
def test_missing_and_damaged_tokenizer_files_are_named(tmp_path, damage):
    write_internlm2_tokenizer(tmp_path)
    damage(tmp_path / "tokenizer.model")
    with pytest.raises(ValueError, match=rf"^the tokenizer in {tmp_path} \(InternLM2Tokenizer\) does not load: .+$"):
        load_tokenizer(tmp_path, LENGTH)


@pytest.mark.parametrize("system", [None, "", 'Say "yes"\nor no.'])
def test_the_prompt_is_the_published_conversation(folder, system):
    processor = processor_of(folder, system_message=system)
    first = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": first}, {"role": "assistant", "content": "blue"}]
    messages.append({"role": "user", "content": "Why?"})
    ours = processor.apply_chat_template(messages, add_generation_prompt=True)
    system = SYSTEM_MESSAGE if system is None else system
    head = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?<|im_end|>\n"
    rest = "<|im_start|>assistant\nblue<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert ours == head + rest
    own = [{"role": "system", "content": "Be brief."}, *messages]
    assert processor.apply_chat_template(own).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert processor.tokenizer.apply_chat_template(messages[:1], tokenize=False) == head


def test_several_images_stand_where_the_prompt_has_them(folder):
    processor = processor_of(folder)
    parts = [{"type": "text", "text": "Image-1: "}, {"type": "image"}, {"type": "text", "text": "Image-2: "}]
    message = {"role": "user", "content": [*parts, {"type": "image"}, {"type": "text", "text": "Which?"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    images = [Image.new("RGB", (30, 30)), Image.new("RGB", (95, 31))]
    inputs = processor(text=[text], images=images, return_tensors="pt")
    blocks = [f"<img>{'<IMG_CONTEXT>' * TOKENS * tiles}</img>\n" for tiles in (1, 4)]
    expected = text.replace("<IMG_CONTEXT>\n", "{}").format(*blocks)
    assert f"Image-1: {blocks[0]}Image-2: {blocks[1]}Which?" in expected
    assert inputs["input_ids"][0].tolist() == processor.tokenizer(expected)["input_ids"]
    assert inputs["pixel_values"].shape == (5, 3, SIDE, SIDE)


def test_what_the_processor_cannot_read_is_an_error(folder):
    processor = processor_of(folder)
    with pytest.raises(ValueError, match="videos were given"):
        processor(text=["<video>"], videos=[np.zeros((2, 3, 8, 8))])
    with pytest.raises(ValueError, match="2 images for 1 placeholders <IMG_CONTEXT> in the text"):
        processor(text=["<IMG_CONTEXT>"], images=[Image.new("RGB", (8, 8))] * 2)
    with pytest.raises(ValueError, match="0 images for 2 placeholders"):
        processor(text="<IMG_CONTEXT><IMG_CONTEXT>")


def published_grid(width, height, most, least=1):
    """Columns and rows nearest in aspect ratio; of equals the last that is less than twice the image's area."""
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if least <= c * r <= most]
    distance = {grid: abs(width / height - grid[0] / grid[1]) for grid in grids}
    nearest = sorted((g for g in grids if distance[g] == min(distance.values())), key=lambda g: g[0] * g[1])
    filled = [g for g in nearest[1:] if width * height > 0.5 * SIDE * SIDE * g[0] * g[1]]
    return (nearest[:1] + filled)[-1]


RATIOS = [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16), (5, 4), (21, 9)]
RATIOS += [(9, 21), (5, 1), (1, 6), (12, 1), (1, 20), (7, 5), (640, 427)]


@pytest.mark.parametrize("thumbnail", [True, False])
@pytest.mark.parametrize("most", [1, 6, 12])
def test_tiles_are_the_published_ones(folder, most, thumbnail):
    tiles = processor_of(folder, max_dynamic_patch=most, use_thumbnail=thumbnail).image_processor
    generator = np.random.default_rng(0)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    grids = set()
    for x, y in RATIOS:
        for longer in (80, 100, 160):
            width, height = (max(1, round(longer * part / max(x, y))) for part in (x, y))
            image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
            columns, rows = published_grid(width, height, most)
            large = image.resize((columns * SIDE, rows * SIDE), Image.Resampling.BICUBIC)
            boxes = [
                (SIDE * c, SIDE * r, SIDE * c + SIDE, SIDE * r + SIDE) for r in range(rows) for c in range(columns)
            ]
            expected = [large.crop(box) for box in boxes]
            if thumbnail and len(expected) > 1:
                expected.append(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            ours = tiles(image, crop_to_patches=True, return_tensors="pt")
            count = tiles.get_number_of_image_patches(height, width, {"crop_to_patches": True})
            assert ours["num_patches"].tolist() == [len(expected)] == [count]
            pixels = np.stack([(np.asarray(tile) / 255 - mean) / std for tile in expected]).transpose(0, 3, 1, 2)
            distance = (ours["pixel_values"] - torch.from_numpy(pixels)).abs()
            if is_torchvision_available():  # its bicubic resampling is not PIL's, on noise least of all
                assert distance.mean() < 0.01
            else:
                assert distance.max() < 1e-5
            grids.add((columns, rows))
    assert len(grids) >= {1: 1, 6: 10, 12: 18}[most]


def test_without_dynamic_tiles_an_image_is_one_tile(folder):
    processor = processor_of(folder, dynamic_image_size=False)
    inputs = processor(text=["<IMG_CONTEXT>"], images=[Image.new("RGB", (200, 50))], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, SIDE, SIDE)
    assert (inputs["input_ids"] == added_ids()["<IMG_CONTEXT>"]).sum() == TOKENS


def test_tiles_have_as_many_tokens_as_the_published_configuration_gives(folder):
    published = {"image_size": 448, "patch_size": 14}
    assert processor_of(folder, force_image_size=448, vision_config=published).image_seq_length == 256
