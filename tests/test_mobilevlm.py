"""MobileVLM V2: its projector against a plain reading, its on-disk layout, and everything that runs on top of it."""

import json
import math

import pytest
import torch
from llava_fixtures import LLAMA, LLAVA, make_model, prompts, vision_config, write_checkpoint, write_json
from loader_fixtures import Bench, prompt_of, questions, write_images
from transformers import CLIPVisionConfig

from llava import load_pretrained_model, prune
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import tokenizer_image_token
from llava.model.language_model.configuration_llava import read_config
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.multimodal_projector.ldpnetv2 import LDPNetV2Projector
from llava.model.pruning.flops import DecoderShape

IMAGE, GRID, TOKENS = 48, 24, 144  # a 24×24 grid, as the published tower's, of small patches
MIXED = ("ttitt", "tttttttt", "tittitt", "itt")
PRUNED = {"mode": ["shallow", "middle", "deep"], "shallow_mid_layer": 1, "layer_threshold": 0.9999}
PRUNED |= {"tokens_threshold": 0.03, "exit_threshold": 0.999, "exit_patience": 1}
LENGTH = 1024
PUBLISHED = {
    "_mlp_class": "LLaMAMLP",
    "architectures": ["MobileLlamaForCausalLM"],
    "bias": False,
    "block_size": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "freeze_mm_mlp_adapter": False,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "intermediate_size": 6912,
    "max_position_embeddings": 2048,
    "mm_hidden_size": 1024,
    "mm_projector_type": "ldpnetv2",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "mobilevlm",
    "n_embd": 2560,
    "n_head": 16,
    "n_layer": 32,
    "n_query_groups": 16,
    "name": "huggy_llama_3b",
    "norm_eps": 1e-06,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_base": 10000,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "rotary_percentage": 1.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_mm_proj": True,
    "vision_tower_type": "clip",
    "vocab_size": 32000,
}
"""From the published config.json of MobileVLM_V2-3B, with keys of another trainer's (`n_head` 16) that mean nothing."""


@pytest.fixture(scope="module")
def model():
    vision = vision_config(IMAGE, IMAGE // GRID)
    return make_model(seed=5, vision=vision, mm_projector_type="ldpnetv2", tokenizer_model_max_length=LENGTH)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return write(tmp_path_factory.mktemp("mobilevlm") / "MobileVLM_V2-small", model)


def write(folder, model, kind="bin", edit=None, **changes):
    """MobileVLM's layout: the tower's weights inside, its configuration under the hub name that config.json gives."""
    path = write_checkpoint(folder, model, kind=kind, model_type="mobilevlm", tower_inside=True, edit=edit)
    tower = PUBLISHED["mm_vision_tower"]
    (path / tower).parent.mkdir()
    (path / "vision_tower").rename(path / tower)
    config = PUBLISHED | LLAMA | LLAVA | {key: PUBLISHED[key] for key in ("mm_projector_type", "mm_vision_tower")}
    write_json(path / "config.json", config | {"tokenizer_model_max_length": LENGTH} | changes)
    return path


def load(folder):
    return load_pretrained_model(folder, None, "MobileVLM_V2-small", device="cpu")


def plain_projector(state, features):
    """Read LDPv2 token by token: features float64 [S², width] of one image to [144, hidden]."""

    def linear(x, name):
        return x @ state[f"mlp.mlp.{name}.weight"].T + state[f"mlp.mlp.{name}.bias"]

    hidden = linear(features, 0)
    hidden = linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), 2)
    side, pooled = math.isqrt(len(features)), {}
    windows = [range(i * side // 12, -(-(i + 1) * side // 12)) for i in range(12)]
    for y in range(12):
        for x in range(12):
            pooled[y, x] = sum(hidden[r * side + c] for r in windows[y] for c in windows[x])
            pooled[y, x] = pooled[y, x] / (len(windows[y]) * len(windows[x]))
    kernel, bias = state["peg.peg.0.weight"], state["peg.peg.0.bias"]
    tokens = []
    for y in range(12):
        for x in range(12):
            near = [(dy, dx) for dy in range(3) for dx in range(3) if (y + dy - 1, x + dx - 1) in pooled]
            position = sum(kernel[:, 0, dy, dx] * pooled[y + dy - 1, x + dx - 1] for dy, dx in near)
            tokens.append(pooled[y, x] + position + bias)
    return torch.stack(tokens)


@pytest.mark.parametrize("side", [24, 16, 12])
@torch.no_grad()
def test_projector_equals_the_plain_reading(side):
    torch.manual_seed(side)
    projector = LDPNetV2Projector(5, 7).double()
    features = torch.randn(2, side * side, 5, dtype=torch.float64)
    expected = torch.stack([plain_projector(projector.state_dict(), image) for image in features])
    torch.testing.assert_close(projector(features), expected, atol=1e-12, rtol=0)


def test_pooling_merges_two_by_two_neighbours_of_the_published_grid():
    """A change of one patch moves the tokens around its 2×2 block only: the block's own and its eight neighbours."""
    projector = LDPNetV2Projector(3, 4)
    features = torch.zeros(1, GRID * GRID, 3)
    features[0, 9 * GRID + 14] = 1.0  # row 9, column 14: block 4, 7
    moved = (projector(features) - projector(torch.zeros_like(features))).abs().amax(-1).view(12, 12) > 1e-6
    assert moved.nonzero().tolist() == [[row, column] for row in (3, 4, 5) for column in (6, 7, 8)]


def test_projector_has_the_published_names_and_refuses_what_is_no_grid():
    shapes = {name: list(tensor.shape) for name, tensor in LDPNetV2Projector(5, 7).state_dict().items()}
    assert shapes == {
        "mlp.mlp.0.weight": [7, 5],
        "mlp.mlp.0.bias": [7],
        "mlp.mlp.2.weight": [7, 7],
        "mlp.mlp.2.bias": [7],
        "peg.peg.0.weight": [7, 1, 3, 3],
        "peg.peg.0.bias": [7],
    }
    with pytest.raises(ValueError, match="got 577 features an image: expected a square grid"):
        LDPNetV2Projector(5, 7)(torch.zeros(1, 577, 5))


def test_the_published_configuration_gives_the_published_size(tmp_path):
    write_json(tmp_path / "config.json", PUBLISHED)
    config = read_config(tmp_path)
    tower = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    with torch.device("meta"):
        model = LlavaLlamaForCausalLM(config, tower)
    assert sum(2 * parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(6.03, abs=5e-3)
    assert model.get_vision_tower().num_tokens == 576 and model.visual_tokens_per_image == TOKENS
    shape = DecoderShape.of(model.config)
    assert shape == DecoderShape(layers=32, hidden=2560, mlp=6912, heads=32, kv_heads=32, head_dim=80)
    flops = shape.layers * shape.layer_flops(model.visual_tokens_per_image)
    assert flops / 1e12 == pytest.approx(0.369, abs=5e-4)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@torch.no_grad()
def test_the_original_layout_gives_the_same_model(model, tmp_path, kind):
    def edit(state):  # as transformers of that time saved it
        state["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(577)[None]
        assert "model.mm_projector.mlp.mlp.0.weight" in state and "model.mm_projector.peg.peg.0.weight" in state

    path = write(tmp_path / "m", model, kind=kind, edit=edit)
    assert not (path / PUBLISHED["mm_vision_tower"] / "model.safetensors").exists()
    tokenizer, loaded, processor, _ = load(path)
    ids, mask, images = prompts(*MIXED, size=IMAGE)
    ours = loaded(ids, attention_mask=mask, images=images).logits
    torch.testing.assert_close(ours, model(ids, attention_mask=mask, images=images).logits, atol=0, rtol=0)
    assert loaded.visual_tokens_per_image == TOKENS == loaded.encode_images(images).shape[1]
    assert processor.crop_size["height"] == IMAGE and tokenizer.padding_side == "left"


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda s: s.pop("model.mm_projector.peg.peg.0.bias"),
            "1 weights are missing: model.mm_projector.peg.peg.0.bias",
        ),
        (
            lambda s: [s.pop(name) for name in list(s) if "mm_projector" in name],
            "6 weights are missing: model.mm_projector.mlp.mlp.0.bias, .* and 1 more",
        ),
        (
            lambda s: s.update({"model.mm_projector.peg.peg.0.weight": torch.ones(32, 32, 3, 3)}),
            r"wrong shape: model.mm_projector.peg.peg.0.weight \[32, 32, 3, 3\] instead of \[32, 1, 3, 3\]",
        ),
        (
            lambda s: s.update({"model.mm_projector.dwn.dwn.0.weight": torch.ones(2)}),
            "1 weights are unexpected: model.mm_projector.dwn.dwn.0.weight",
        ),
    ],
)
def test_damaged_checkpoints_are_refused_by_name(model, tmp_path, kind, edit, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "m", model, kind=kind, edit=edit))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "ldpnet"}, "mm_projector_type 'ldpnet' is not supported: expected .* or 'ldpnetv2'"),
        ({"mm_vision_select_feature": "cls_patch"}, "'ldpnetv2' pools a grid of patches: .* not 'cls_patch'"),
        ({"vision_tower_type": "siglip"}, "vision_tower_type 'siglip': only 'clip'"),
        ({"mm_hidden_size": 17}, "mm_hidden_size is 17, but the vision tower .* is 16 wide"),
        ({"model_type": "mobilevlm_v3"}, "model_type 'mobilevlm_v3'"),
    ],
)
def test_other_configurations_are_refused_before_weights_are_read(model, tmp_path, changes, message):
    path = write(tmp_path / "m", model, **changes)
    (path / "pytorch_model.bin").write_bytes(b"not read")
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize("config", [None, PRUNED, PRUNED | {"preset": "released"}])
def test_batch_equals_one_by_one(model, config):
    """Logits of the last token, generated tokens and traces, untouched and pruned."""
    ids, mask, images = prompts(*MIXED, size=IMAGE)
    together, tokens, traces = answers(model, ids, mask, images, config)
    used = 0
    for row, (sample, keep) in enumerate(zip(ids, mask.bool(), strict=True)):
        count = int((sample == IMAGE_TOKEN_INDEX).sum())
        alone = images[used : used + count] if count else None
        logits, new, trace = answers(model, sample[keep][None], None, alone, config)
        torch.testing.assert_close(logits[0], together[row], atol=1e-4, rtol=0)
        assert new[0] == tokens[row]
        if config is not None:
            assert (trace[0].tokens_per_layer, trace[0].kept) == (traces[row].tokens_per_layer, traces[row].kept)
        used += count


@torch.no_grad()
def answers(model, ids, mask, images, config):
    inputs = {"attention_mask": mask, "images": images}
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    if config is None:
        return model(ids, **inputs).logits[:, -1], model.generate(ids, **inputs, **options).tolist(), None
    with prune(model, config) as session:
        logits = model(ids, **inputs).logits[:, -1]
        tokens = model.generate(ids, **inputs, **options).tolist()
    return logits, tokens, session.traces[: len(ids)]


def test_pruning_sees_the_downsampled_tokens(model):
    ids, mask, images = prompts(*MIXED, size=IMAGE)
    _, _, traces = answers(model, ids, mask, images, PRUNED)
    assert [trace.visual_tokens for trace in traces] == [TOKENS * sketch.count("i") for sketch in MIXED]
    for trace, sketch in zip(traces, MIXED, strict=True):
        assert trace.tokens_per_layer[0] == len(sketch) + (TOKENS - 1) * sketch.count("i")
        assert trace.flops() <= trace.dense_flops() and set(trace.kept) <= set(range(trace.tokens_per_layer[0]))
    assert any(0 < len(trace.kept) < trace.visual_tokens for trace in traces)


@torch.no_grad()
def test_nothing_pruned_equals_the_untouched_model(model):
    ids, mask, images = prompts(*MIXED, size=IMAGE)
    untouched, tokens, _ = answers(model, ids, mask, images, None)
    logits, pruned, _ = answers(model, ids, mask, images, {"mode": []})
    torch.testing.assert_close(logits, untouched, atol=1e-5, rtol=0)
    assert pruned == tokens


@pytest.mark.parametrize("pruning", [None, json.dumps(PRUNED)])
def test_the_evaluation_counts_the_tokens_that_the_projector_makes(model, folder, tmp_path, pruning):
    """A prompt that fits exactly with 144 visual tokens is asked; with the tower's 576 it would not be."""
    tokenizer = load(folder)[0]
    prompts_asked = [prompt_of(question["text"]) for question in questions()]
    lengths = [len(tokenizer_image_token(prompt, tokenizer)) for prompt in prompts_asked]
    path = write(tmp_path / "m", model, tokenizer_model_max_length=max(lengths) - 1 + TOKENS)
    bench = Bench(tmp_path, path, write_images(tmp_path / "images"))
    assert bench.run(pruning_config=pruning) == 0
    found = [row["metadata"] for row in bench.rows()]
    assert [row["visual_tokens"] for row in found] == [TOKENS] * len(lengths)
    assert [row["tokens_per_layer"][0] for row in found] == [length - 1 + TOKENS for length in lengths]
    assert bench.record()["totals"]["skipped"] == 0
