"""LLaVA-1.6 in the original layout: pixels, logits and pruning are those of transformers' LLaVA-NeXT."""

import numpy as np
import pytest
import torch
from llava_fixtures import LLAMA, TOWER, VOCABULARY, hf_inputs, make_model, vision_config, write_checkpoint, write_json
from PIL import Image
from transformers import LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextImageProcessorPil

from llava import PruningConfig, load_pretrained_model, prune
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import process_images
from llava.model.inputs import Turn, inputs_for
from llava.model.language_model.configuration_llava import read_json

PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
ANYRES = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad", "image_grid_pinpoints": PINPOINTS}
SIZES = [(28, 28), (60, 25), (31, 90), (100, 97), (83, 28), (300, 7)]


def picture(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anyres") / "llava-v1.6-small"
    write_checkpoint(folder, make_model(seed=5, **ANYRES), tower_inside=True)
    write_json(folder / "config.json", read_json(folder / "config.json") | ANYRES | {"tokenizer_model_max_length": 256})
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load_pretrained_model(folder, None, "llava-v1.6-small", device="cpu")


@pytest.fixture(scope="module")
def twin(loaded):
    config = LlavaNextConfig(
        vision_config=vision_config(),
        text_config=LlamaConfig(**LLAMA),
        image_token_id=VOCABULARY - 1,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=[[height, width] for width, height in PINPOINTS],
    )
    twin = LlavaNextForConditionalGeneration(config).eval()
    names = {TOWER: "model.vision_tower.", "model.mm_projector.0.": "model.multi_modal_projector.linear_1."}
    names |= {"model.mm_projector.2.": "model.multi_modal_projector.linear_2.", "lm_head.": "lm_head."}
    names |= {"model.image_newline": "model.image_newline", "model.": "model.language_model."}
    state = {}
    for name, tensor in loaded[1].state_dict().items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        state[names[ours] + name.removeprefix(ours)] = tensor
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_transformers(loaded, size):
    image = picture(size)
    ours = process_images([image], loaded[2], loaded[1].config)[0]
    pinpoints = [[height, width] for width, height in PINPOINTS]
    side = {"height": 28, "width": 28}
    processor = LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size=side, image_grid_pinpoints=pinpoints)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def prompt(loaded, sizes):
    """Return a batch with one image per row, and the same batch for transformers' class."""
    tokenizer, model, processor, _ = loaded
    images = [process_images([picture(size, seed)], processor, model.config)[0] for seed, size in enumerate(sizes)]
    rows = [[5 + index, IMAGE_TOKEN_INDEX, *range(20, 24 + index)] for index in range(len(sizes))]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    ours = {"attention_mask": ids.ne(0).long(), "images": images, "image_sizes": sizes}
    counts = [len(features) for features in model.encode_images(images, sizes)]
    full = [
        torch.tensor(row)
        .masked_fill(torch.tensor(row) == IMAGE_TOKEN_INDEX, VOCABULARY - 1)
        .repeat_interleave(torch.tensor([count if token == IMAGE_TOKEN_INDEX else 1 for token in row]))
        for row, count in zip(rows, counts, strict=True)
    ]
    theirs = hf_inputs(*_padded(full), None)
    tiles = max(map(len, images))
    pixels = torch.stack([torch.cat([one, one.new_zeros(tiles - len(one), *one.shape[1:])]) for one in images])
    theirs |= {"pixel_values": pixels, "image_sizes": torch.tensor([(height, width) for width, height in sizes])}
    return ids, ours, theirs


def _padded(rows):
    length = max(map(len, rows))
    ids = torch.stack([torch.cat([row.new_zeros(length - len(row)), row]) for row in rows])
    return ids, torch.stack([(torch.arange(length) >= length - len(row)).long() for row in rows])


@pytest.mark.parametrize("sizes", [[size] for size in SIZES] + [SIZES[:3]])
@torch.no_grad()
def test_logits_are_those_of_transformers(loaded, twin, sizes):
    ids, ours, theirs = prompt(loaded, sizes)
    torch.testing.assert_close(
        loaded[1](ids, **ours).logits[:, -4:], twin(**theirs).logits[:, -4:], atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    "config",
    [
        {"method": "fastv", "k": 1, "r": 0.5},
        {"mode": ["shallow", "middle"], "shallow_mid_layer": 1, "layer_threshold": 0.99, "tokens_threshold": 0.2},
    ],
)
@torch.no_grad()
def test_pruning_decides_as_in_transformers_layout(loaded, twin, config):
    ids, ours, theirs = prompt(loaded, SIZES[1:4])
    seen = []
    for model, call in ((loaded[1], {"inputs": ids, **ours}), (twin, theirs)):
        with prune(model, PruningConfig.from_dict(config)) as session:
            output = model.generate(**call, max_new_tokens=4, do_sample=False)
        seen.append((output[:, -4:].tolist(), [(t.tokens_per_layer, t.kept) for t in session.traces]))
    assert seen[0] == seen[1]
    assert min(seen[0][1][0][0]) < max(seen[0][1][0][0])


def test_questions_go_the_way_of_the_loader(loaded):
    tokenizer, model, processor, _ = loaded
    inputs = inputs_for(tokenizer, processor, model.config)
    image = picture(SIZES[1])
    row = inputs.encode([Turn("What is this?", 1)])
    [features] = inputs.encode_images(model, [inputs.prepare(image)])
    assert features.grid is None and inputs.length(row, [features]) == len(row) - 1 + features.tokens
    output = model.generate(**inputs.collate([row], [[features]], model), max_new_tokens=5, do_sample=False)
    pixels = process_images([image], processor, model.config)
    given = {"images": pixels, "image_sizes": [image.size]}
    assert torch.equal(output, model.generate(torch.tensor([row]), **given, max_new_tokens=5, do_sample=False))


@pytest.mark.parametrize("away", ["", "model", "model.image_newline", "model.mm_projector"])
def test_an_offloaded_model_gives_the_same_answers(loaded, folder, tmp_path, away):
    """`image_newline` is a parameter beside the modules that accelerate brings back."""
    parts = ["embed_tokens", "layers", "norm", "rotary_emb", "vision_tower", "mm_projector", "image_newline"]
    names = {"": [], "model": ["lm_head"]}.get(away, ["lm_head", *(f"model.{part}" for part in parts)])
    offload = {"device_map": dict.fromkeys(names, "cpu") | {away: "disk"}, "offload_folder": tmp_path}
    model = load_pretrained_model(folder, None, "llava", device="cpu", **offload)[1]
    pixels = process_images([picture(SIZES[1])], loaded[2], model.config)
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 5, 6]])
    given = {"images": pixels, "image_sizes": [SIZES[1]], "max_new_tokens": 4, "do_sample": False}
    for _ in range(2):
        assert torch.equal(model.generate(ids, **given), loaded[1].generate(ids, **given))


def test_what_cannot_be_computed_is_refused(loaded, folder):
    tokenizer, model, processor, _ = loaded
    pixels = process_images([picture((60, 25))], processor, model.config)
    ids = torch.tensor([[5, IMAGE_TOKEN_INDEX, 6]])
    with pytest.raises(ValueError, match="no image_sizes for 1 AnyRes images"):
        model(ids, images=pixels)
    with pytest.raises(ValueError, match="came in 3 tiles: expected 4"):
        model(ids, images=pixels, image_sizes=[(56, 56)])
    with pytest.raises(ValueError, match="encoder"):
        prune(model, PruningConfig.from_dict({"method": "visionzip"}))
    config = read_json(folder / "config.json")
    try:
        write_json(folder / "config.json", config | {"mm_patch_merge_type": "spatial"})
        with pytest.raises(ValueError, match="mm_patch_merge_type 'spatial'"):
            load_pretrained_model(folder, None, "llava", device="cpu")
    finally:
        write_json(folder / "config.json", config)
