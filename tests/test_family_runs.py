"""Every family through loader and chat: prompts and pixels of its processor, whatever the batch holds."""

import inspect
import json
import pickle
from functools import wraps

import family_checkpoints_more
import numpy as np
import pytest
import torch
from family_checkpoints import FAMILIES, write_family
from loader_fixtures import CONFIG, Bench, comparable, questions, write_images, write_jsonl
from PIL import Image
from transformers.utils.logging import warning_once

from llava import PruningConfig, load_pretrained_model, prune
from llava.eval.runner.timing import ForwardTimer
from llava.model.inputs import Turn, inputs_for
from llava.model.inputs import processor as processor_inputs
from llava.model.inputs.processor import ENCODED
from llava.model.loaded import LoadedModel
from llava.serve import cli_pruning
from llava.serve.chat import Chat, Sampling

PRUNED = json.dumps(CONFIG | {"layer_threshold": 0.99, "tokens_threshold": 0.3})
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
QWEN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n<|im_start|>assistant\n"
    "{}<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
)
SECOND_TURN = {
    "llava": SYSTEM + "USER: <image>\nWhat is it? ASSISTANT: {} USER: Why? ASSISTANT:",
    "llava_next": "USER: <image>\nWhat is it? ASSISTANT: {} USER: Why? ASSISTANT:",
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "qwen3_5": QWEN,
    "internvl": (
        "<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
        "{}<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llava_onevision": (
        "<|im_start|>user <image>\nWhat is it?<|im_end|><|im_start|>assistant \n{}<|im_end|>"
        "<|im_start|>user \nWhy?<|im_end|><|im_start|>assistant\n"
    ),
}
CONVERSATIONS = (
    ([Turn("What is it?", 1)], "a"),
    ([Turn("Is it red, or what is it?")], ""),
    ([Turn("Which one?", 2, "the left one"), Turn("And now?", 1)], "bca"),
    ([Turn("x", 1)], "c"),
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    return request.param, write_family(root / "model", request.param), write_images(root / "images")


@pytest.fixture(scope="module")
def loaded(family):
    return load_pretrained_model(family[1], None, "model", device="cpu")


@pytest.fixture
def bench(tmp_path, family):
    """Ten questions, every third in text alone."""
    bench = Bench(tmp_path, family[1], family[2])
    rows = questions()
    for row in rows[1::3]:
        del row["image"]
    write_jsonl(bench.question_file, rows)
    return bench


def second_turn(loaded, name, first):
    """The prompt of a chat's second question, written by hand or by the tokenizer's template."""
    if name in SECOND_TURN:
        return SECOND_TURN[name].format(first)
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    turns = [("user", parts), ("assistant", [{"type": "text", "text": first}])]
    turns += [("user", [{"type": "text", "text": "Why?"}])]
    return written(loaded, [{"role": role, "content": content} for role, content in turns])


def written(loaded, messages):
    """What the chat template makes of messages."""
    more = {"chat_template": loaded[2].chat_template, "add_generation_prompt": True, "tokenize": False}
    return loaded[0].apply_chat_template(messages, **more)


def pictures(family):
    return {name: Image.open(family[2] / path) for name, path in (("a", "a.png"), ("b", "sub/b.png"), ("c", "c.png"))}


def padded(image, name):
    """LLaVA-1.5 sees an image in the middle of a square of its mean colour."""
    if name != "llava":
        return image
    side = max(image.size)
    whole = Image.new("RGB", (side, side), (122, 116, 104))
    whole.paste(image.convert("RGB"), ((side - image.width) // 2, (side - image.height) // 2))
    return whole


def processed(processor, texts, images):
    """What the processor makes of prompts and the images of each, as it takes them."""
    alone = type(processor).__name__ == "GotOcr2Processor" and not any(images)  # it takes no prompt without an image
    if alone:
        return processor.tokenizer(texts, padding=True, return_tensors="pt")
    nested = type(processor).__name__ == "SmolVLMProcessor"
    shown = images if nested else [image for of_one in images for image in of_one]
    return processor(text=texts, images=shown if any(images) else None, padding=True, return_tensors="pt")


def answer(loaded, prompt, images, limit=6):
    """Ask transformers itself."""
    _, model, processor, _ = loaded
    given = processed(processor, [prompt], [images])
    arguments = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "max_new_tokens": limit}
    output = model.generate(**given, **arguments)
    return processor.decode(output[0, given["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_a_batch_is_what_the_processor_makes_of_it(family, loaded):
    """Mixed sizes, several images, several turns and text alone: ids, masks and grids, and features of the pixels."""
    _, model, processor, _ = loaded
    inputs = pickle.loads(pickle.dumps(inputs_for(loaded[0], processor, model.config)))
    images = pictures(family)
    conversations = [one for one in CONVERSATIONS if one[1] or family[0] != "got_ocr2"]
    rows = [inputs.encode(turns) for turns, _ in conversations]
    seen = [inputs.encode_images(model, [inputs.prepare(images[name]) for name in shown]) for _, shown in conversations]
    batch = inputs.collate(rows, seen, model)
    shown = [[padded(images[name], family[0]).convert("RGB") for name in names] for _, names in conversations]
    expected = processed(processor, [inputs.prompt(turns) for turns, _ in conversations], shown)
    features = batch.pop(ENCODED)["image"].pooler_output
    known = inspect.signature(model.base_model.get_image_features).parameters
    given = {name: value for name, value in expected.items() if name in known}
    made = model.base_model.get_image_features(**given, return_dict=True).pooler_output
    own = torch.cat([one.flatten(0, -2) for one in features])
    torch.testing.assert_close(own, torch.cat([one.flatten(0, -2) for one in made]), atol=1e-4, rtol=1e-4)
    expected = {name: value for name, value in expected.items() if "pixel" not in name}
    assert set(batch) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(batch[name], value.to(batch[name].dtype), atol=0, rtol=0)
    lengths = [inputs.length(row, shown) for row, shown in zip(rows, seen, strict=True)]
    assert lengths == expected["attention_mask"].sum(-1).tolist()
    visual = [sum(image.visual for image in shown) for shown in seen]
    assert visual == (expected["input_ids"] == model.config.image_token_id).sum(-1).tolist()
    starts = [inputs.visual_start(row, shown) for row, shown in zip(rows, seen, strict=True)]
    for row, start, length in zip(expected["input_ids"], starts, lengths, strict=True):
        found = (row[-length:] == model.config.image_token_id).nonzero()
        assert start == (int(found[0]) if len(found) else None)


def test_the_dense_loader_answers_as_transformers_does(family, loaded, bench, capfd):
    warning_once.cache_clear()
    assert bench.run() == 0
    lines = capfd.readouterr().err.splitlines()
    assert not [line for line in lines if "[transformers]" in line and "falling back to its reference" not in line]
    assert bench.record()["settings"]["conv_mode"] is None
    for line, row in zip(bench.question_file.read_text().splitlines(), bench.rows(), strict=True):
        question = json.loads(line)
        parts = [{"type": "image"}] * ("image" in question) + [{"type": "text", "text": question["text"]}]
        messages = [{"role": "user", "content": parts}]
        if family[0] == "llava":
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": SYSTEM.strip()}]})
        prompt = written(loaded, messages)
        images = [padded(Image.open(family[2] / question["image"]), family[0])] if "image" in question else []
        assert row["text"] == answer(loaded, prompt, images)


@pytest.mark.parametrize("pruning", [None, PRUNED])
def test_answers_and_traces_do_not_depend_on_the_batch(family, bench, pruning):
    if pruning is None and family[0] in family_checkpoints_more.FAMILIES:
        return  # dense, they are asked one by one above
    seen = []
    for size, workers in ((1, 0), (4, 0), (10, 1)):
        bench.answers = bench.root / f"{size}.jsonl"
        assert bench.run(pruning_config=pruning, batch_size=size, workers=workers) == 0
        seen.append(comparable(bench.rows()))
    assert seen[0] == seen[1] == seen[2]
    traces = [row["metadata"] for row in seen[0]]
    assert [trace["visual_tokens"] > 0 for trace in traces] == [number % 3 != 1 for number in range(10)]
    if pruning:
        assert any(0 < trace["kept_tokens"] < trace["visual_tokens"] for trace in traces if trace["kept_tokens"])
        assert bench.record()["totals"]["flops"] < bench.record()["totals"]["dense_flops"]


@pytest.mark.parametrize("beams", [1, 2])
def test_an_image_is_looked_at_once_for_all_its_questions(family, loaded, monkeypatch, beams):
    """Also by a model whose `forward` takes nothing but pixels, in every prefill: the same tokens."""
    _, model, processor, _ = loaded
    inputs = inputs_for(loaded[0], processor, model.config)
    encode, looked = model.base_model.get_image_features, []

    @wraps(encode)
    def counted(**given):
        looked.append(given)
        return encode(**given)

    monkeypatch.setattr(model.base_model, "get_image_features", counted)
    rows = [inputs.encode([Turn(text, 2)]) for text in ("Is it?", "Which?")]
    images = [inputs.prepare(pictures(family)[name]) for name in "ab"]

    def answers():
        seen = inputs.encode_images(model, images)
        return [
            inputs.new_tokens(
                model.generate(**batch, num_beams=beams, do_sample=False, max_new_tokens=4), batch
            ).tolist()
            for batch in (inputs.collate([row, row], [seen, seen], model) for row in rows)
        ]

    once = answers()
    assert len(looked) == 1
    monkeypatch.setattr(processor_inputs, "takes_features", lambda model: False)
    assert answers() == once and len(looked) == 3


def test_vision_is_timed_apart(loaded, family):
    _, model, processor, _ = loaded
    inputs = inputs_for(loaded[0], processor, model.config)
    for turns, shown, there in (([Turn("x", 1)], "a", True), ([Turn("x")], "", False)):
        with torch.inference_mode(), ForwardTimer(model) as timer:
            seen = inputs.encode_images(model, [inputs.prepare(pictures(family)[name]) for name in shown])
            batch = inputs.collate([inputs.encode(turns)], [seen], model)
            model.generate(**batch, max_new_tokens=3, min_new_tokens=3)
        spent = timer.take()
        assert (spent.prefills, spent.decode_steps, spent.vision > 0) == (1, 2, there)


def as_loaded(loaded):
    return LoadedModel("model", *loaded, inputs_for(loaded[0], loaded[2], loaded[1].config))


@pytest.mark.parametrize("pruned", [False, True])
def test_a_chat_of_two_turns_asks_what_one_would_write_by_hand(family, loaded, pruned):
    config = PruningConfig.from_json(PRUNED)
    chat = Chat(as_loaded(loaded), config, Sampling(max_new_tokens=6), pruning_on=pruned)
    image = pictures(family)["b"]
    assert chat.see(image.convert("RGB"), "b.png").seen.visual > 0
    first, second = chat.ask("What is it?"), chat.ask("Why?")
    prompt = second_turn(loaded, family[0], first.text)
    if pruned:
        with prune(loaded[1], config) as session:
            assert second.text == answer(loaded, prompt, [padded(image, family[0])])
        assert second.trace.summary() == session.traces[-1].summary()
        assert second.trace.visual_tokens == chat.image.seen.visual
    else:
        assert second.text == answer(loaded, prompt, [padded(image, family[0])])
    assert second.prompt_tokens > first.prompt_tokens and chat.turns == 2


def test_a_text_that_holds_a_placeholder_is_refused(family, loaded, bench, capsys):
    token = loaded[2].image_token
    inputs = inputs_for(loaded[0], loaded[2], loaded[1].config)
    with pytest.raises(ValueError, match="stands for an image"):
        inputs.encode([Turn(f"What is {token}?", 1)])
    assert token not in inputs.clean(f"a {token}!")
    chat = Chat(as_loaded(loaded), PruningConfig.from_json(PRUNED))
    with pytest.raises(ValueError, match="the image's place"):
        chat.ask(f"What is {token}?")
    rows = questions()
    rows[2]["text"] = f"Is {token} there?"
    write_jsonl(bench.question_file, rows)
    assert bench.run() == 1
    assert "questions.jsonl:3: the text " in capsys.readouterr().err.splitlines()[-1]


def test_a_conversation_template_is_refused_before_the_model_loads(family, bench, capsys, monkeypatch):
    monkeypatch.setattr("llava.model.loaded.load_pretrained_model", None)
    assert bench.run(conv_mode="vicuna_v1") == 1
    said = capsys.readouterr().err
    assert "'vicuna_v1' (conv_mode) was given" in said and said.count("\n") == 1
    arguments = ["-p", "hi", "--model-path", str(family[1]), "--conv-mode", "vicuna_v1"]
    assert cli_pruning.main(arguments) == 1
    assert "'vicuna_v1' (conv_mode) was given" in capsys.readouterr().err


def test_a_boundary_beyond_the_decoder_is_refused_and_an_open_one_is_filled_in(family, bench, capsys):
    config = {key: value for key, value in json.loads(PRUNED).items() if key != "shallow_mid_layer"}
    assert bench.run(pruning_config=json.dumps(config | {"shallow_mid_layer": 6})) == 1
    assert "the model has 6 layers" in capsys.readouterr().err and not bench.answers.exists()
    assert bench.run(pruning_config=json.dumps(config), limit=2) == 0
    assert bench.record()["filled_in"] == {"shallow_mid_layer": 1}
    assert bench.record()["settings"]["pruning_config"]["shallow_mid_layer"] == 1
    assert bench.run(pruning_config=json.dumps(config | {"shallow_mid_layer": 1})) == 0  # the same settings, resumed
    assert len(bench.rows()) == 10


def test_the_chats_command_line_takes_every_family(family, capsys):
    command = ["--model-path", str(family[1]), "--image-file", str(family[2] / "c.png"), "--device", "cpu"]
    assert cli_pruning.main([*command, "-p", "What is it?", "--max-new-tokens", "3"]) == 0
    said = capsys.readouterr()
    assert "visual tokens" in said.err and said.err.count("\n") <= 2


def test_images_of_any_mode_are_taken(family, loaded):
    inputs = inputs_for(loaded[0], loaded[2], loaded[1].config)
    grey = Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40))
    one, other = inputs.prepare(grey), inputs.prepare(grey.convert("RGB"))
    assert one.ids == other.ids and all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
