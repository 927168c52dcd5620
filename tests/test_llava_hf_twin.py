"""LLaVA's original layout and transformers' own: the same weights give the same prompts, pixels and answers."""

import json
from pathlib import Path

import pytest
import torch
from family_checkpoints import CLIP_IMAGES, LLAVA_TEMPLATE, clip_tokens, square, write_json
from loader_fixtures import Bench, comparable
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from llava import load_pretrained_model
from llava.model.inputs import Turn, inputs_for
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import write_benchmarks

ORIGINAL = Path(CHECKPOINT)
NAMES = {
    "model.mm_projector.0.": "multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "multi_modal_projector.linear_2.",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


def write_twin(folder: Path) -> Path:
    """The small model as llava-hf publishes LLaVA-1.5: its weight names, an `<image>` token, processor files."""
    folder.mkdir()
    old = json.loads((ORIGINAL / "config.json").read_text())
    tower = json.loads((ORIGINAL / "vision_tower" / "config.json").read_text())
    state = {}
    for name, tensor in load_file(ORIGINAL / "model.safetensors").items():
        ours = next(prefix for prefix in NAMES if name.startswith(prefix))
        if "embed_tokens" in name or "lm_head" in name:
            tensor = torch.cat([tensor, tensor.new_zeros(1, tensor.shape[1])])
        state[NAMES[ours] + name.removeprefix(ours)] = tensor
    for name, tensor in load_file(ORIGINAL / "vision_tower" / "model.safetensors").items():
        state["vision_tower.vision_model." + name.removeprefix("vision_model.")] = tensor
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    tokenizer = AutoTokenizer.from_pretrained(ORIGINAL)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    shape += ("rms_norm_eps", "rope_theta", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    text = {"model_type": "llama", "vocab_size": len(tokenizer), **{key: old[key] for key in shape}}
    config = {"model_type": "llava", "image_token_index": len(tokenizer) - 1, "projector_hidden_act": "gelu"}
    config |= {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "tie_word_embeddings": False}
    write_json(folder / "config.json", config | {"text_config": text, "vision_config": tower})
    images = json.loads((ORIGINAL / "vision_tower" / "preprocessor_config.json").read_text())
    keep = {key: images[key] for key in ("image_mean", "image_std")}
    side = tower["image_size"]
    images = CLIP_IMAGES | square("crop_size", side) | {"size": {"shortest_edge": side}} | keep
    write_json(folder / "preprocessor_config.json", images)
    tokens = clip_tokens() | {"patch_size": tower["patch_size"]}
    write_json(folder / "processor_config.json", {"processor_class": "LlavaProcessor", **tokens})
    write_json(folder / "chat_template.json", {"chat_template": LLAVA_TEMPLATE})
    write_json(folder / "generation_config.json", {"eos_token_id": 2, "pad_token_id": 0})
    return folder


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return write_twin(tmp_path_factory.mktemp("twin") / "llava-tiny-hf")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_benchmarks(folder, questions=20, seed=5)
    return folder


def test_prompts_and_pixels_are_the_same_to_the_bit(twin):
    original = load_pretrained_model(ORIGINAL, None, "llava-tiny", device="cpu")
    other = load_pretrained_model(twin, None, "llava-tiny-hf", device="cpu")
    ours = inputs_for(original[0], original[2], original[1].config)
    theirs = inputs_for(other[0], other[2], other[1].config)
    turns = [Turn("What color is the circle?\nAnswer with one word.", 1)]
    assert ours.prompt(turns) == theirs.prompt(turns)
    plain = [theirs.marker if token == ours.marker else token for token in ours.encode(turns)]
    assert plain == theirs.encode(turns)
    image = Image.open("docs/scene.png").convert("RGB").crop((0, 0, 300, 170))
    mine, picture = ours.prepare(image), theirs.prepare(image)
    torch.testing.assert_close(
        torch.from_numpy(mine.arrays["pixel_values"]), torch.from_numpy(picture.arrays["pixel_values"][0])
    )
    assert len(picture.ids) == original[1].visual_tokens_per_image


@pytest.mark.parametrize("pruned", [False, True])
def test_the_loader_gives_the_same_answers_and_traces(twin, data, tmp_path, pruned):
    seen = []
    for model in (ORIGINAL, twin):
        (tmp_path / model.name).mkdir()
        bench = Bench(tmp_path / model.name, model, data / "textvqa_mini" / "train_images")
        bench.question_file = data / "textvqa_mini" / "llava_textvqa_val_v051_ocr.jsonl"
        config = str(ORIGINAL / "pruning.json") if pruned else None
        assert bench.run(pruning_config=config, max_new_tokens=16) == 0
        seen.append([row | {"model_id": ""} for row in comparable(bench.rows())])
    ours, theirs = seen
    assert [row["text"] for row in ours] == [row["text"] for row in theirs]
    assert len({row["text"] for row in ours}) > 5
    for name in ("tokens_per_layer", "kept_tokens", "filter_layer", "exit_layer", "generated_tokens"):
        assert [row["metadata"][name] for row in ours] == [row["metadata"][name] for row in theirs]
