"""InternVL in its original layout through loader and chat: converted in memory, prompts as its own chat writes them."""

import json

import pytest
import torch
from internvl_fixtures import write_original
from loader_fixtures import CONFIG, Bench, comparable, questions, write_images, write_jsonl
from PIL import Image

from llava import PruningConfig, load_pretrained_model
from llava.model.formats import read_layout
from llava.model.inputs import Turn, inputs_for
from llava.model.internvl.processor import SYSTEM_MESSAGE
from llava.model.loaded import LoadedModel
from llava.serve.chat import Chat, Sampling


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    root = tmp_path_factory.mktemp("internvl")
    return write_original(root / "model"), write_images(root / "images")


@pytest.mark.parametrize("pruning", [None, json.dumps(CONFIG)])
def test_answers_do_not_depend_on_the_batch(shared, tmp_path, pruning):
    bench, rows, seen = Bench(tmp_path, *shared), questions(), []
    for row in rows[1::3]:
        del row["image"]
    write_jsonl(bench.question_file, rows)
    for size in (1, 4):
        bench.answers = tmp_path / f"{size}.jsonl"
        assert bench.run(pruning_config=pruning, batch_size=size) == 0
        seen.append(comparable(bench.rows()))
    assert seen[0] == seen[1]
    assert [row["metadata"]["visual_tokens"] > 0 for row in seen[0]] == [number % 3 != 1 for number in range(10)]


def test_a_chat_asks_in_internvls_own_words(shared):
    loaded = load_pretrained_model(shared[0], None, "model", device="cpu")
    assert read_layout(shared[0]).layers == len(loaded[1].model.language_model.layers) == 3
    inputs = inputs_for(loaded[0], loaded[2], loaded[1].config)
    image = Image.open(shared[1] / "c.png").convert("RGB")
    picture = inputs.prepare(image)
    seen = inputs.encode_images(loaded[1], [picture])
    batch = inputs.collate([inputs.encode([Turn("What is it?", 1)])], [seen], loaded[1])
    prompt = (
        f"<|im_start|>system\n{SYSTEM_MESSAGE}<|im_end|>\n<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    given = loaded[2](text=[prompt], images=[image], return_tensors="pt")
    batch["pixel_values"] = torch.from_numpy(picture.arrays["pixel_values"])
    features = batch.pop("mm_encoder_outputs")["image"].pooler_output
    assert set(batch) == set(given) and all(torch.equal(batch[name], given[name]) for name in given)
    made = loaded[1].base_model.get_image_features(given["pixel_values"], return_dict=True)
    torch.testing.assert_close(features, made.pooler_output)
    whole = LoadedModel("model", *loaded, inputs)
    chat = Chat(whole, PruningConfig.from_dict(CONFIG), Sampling(max_new_tokens=4), pruning_on=False)
    chat.see(image, "c.png")
    reply = chat.ask("What is it?")
    assert reply.prompt_tokens == given["input_ids"].shape[1]
    output = loaded[1].generate(**given, do_sample=False, max_new_tokens=4)
    assert reply.new_tokens == output.shape[1] - reply.prompt_tokens
