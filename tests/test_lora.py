"""LoRA checkpoints: LLaVA's own and PEFT's folders give what PEFT computes, and account for every weight."""

import json

import pytest
import torch
from family_checkpoints import write_family
from llava_fixtures import LLAMA, make_model, prompts, write_checkpoint, write_json, write_weights
from safetensors.torch import load_file, save_file

from llava import PruningConfig, load_pretrained_model, prune
from llava.cli import ModelOptions
from llava.model.loaded import LoadedModel
from llava.model.preflight import check_model

peft = pytest.importorskip("peft")

LINEAR = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("base") / "llava-base", make_model(seed=3))


def load(folder, base=None):
    return load_pretrained_model(folder, base, "name", device="cpu")[1]


def adapt(model, folder, base, **settings):
    """Train nothing: put a random LoRA on `model`, write it to `folder`, and return the PEFT model."""
    settings = {"target_modules": LINEAR, "r": 4, "lora_alpha": 8} | settings
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or parameter.requires_grad:
                parameter.normal_(0, 0.1)
    adapted.base_model.model.config._name_or_path = str(base)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return adapted


@torch.no_grad()
def logits(model):
    ids, mask, images = prompts("titt", "ttt")
    return model(input_ids=ids, attention_mask=mask, images=images).logits


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "target_modules": "all-linear"},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"modules_to_save": ["lm_head", "mm_projector"]},
        {"target_modules": [*LINEAR, "embed_tokens"]},
    ],
)
def test_a_peft_folder_is_the_merged_model(base, tmp_path, settings):
    adapted = adapt(load(base), tmp_path / "adapter", base, **settings)
    merged = load(tmp_path / "adapter")
    torch.testing.assert_close(logits(merged), logits(adapted.base_model.model), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(logits(merged), logits(load(base)), atol=1e-3)


@pytest.fixture
def llava_lora(base, tmp_path):
    """LLaVA's `--lora_enable` on a Vicuna: config, adapter, projector in `non_lora_trainables.bin`; and its model."""
    vicuna, folder = tmp_path / "vicuna", tmp_path / "llava-lora"
    vicuna.mkdir()
    adapted = adapt(load(base), folder, vicuna)
    state = {
        name: tensor for name, tensor in load_file(base / "model.safetensors").items() if "mm_projector" not in name
    }
    write_weights(vicuna, state)
    write_json(vicuna / "config.json", LLAMA | {"model_type": "llama"})
    for name in ("tokenizer.model", "tokenizer_config.json"):
        if (base / name).exists():
            (vicuna / name).write_bytes((base / name).read_bytes())
    config = json.loads((base / "config.json").read_text()) | {"mm_vision_tower": str(base / "vision_tower")}
    write_json(folder / "config.json", config | {"model_type": "llava_llama"})
    with torch.no_grad():
        model = adapted.base_model.model
        model.model.mm_projector[0].bias += 1
        projector = {
            f"base_model.model.model.mm_projector.{k}": v for k, v in model.model.mm_projector.state_dict().items()
        }
    torch.save(projector, folder / "non_lora_trainables.bin")
    return folder, vicuna, model


def test_llavas_lora_takes_its_projector_from_the_other_file(llava_lora):
    folder, vicuna, model = llava_lora
    torch.testing.assert_close(logits(load(folder, vicuna)), logits(model), atol=1e-5, rtol=1e-4)
    options = ModelOptions(model_path=str(folder), model_base=str(vicuna), device="cpu")
    settings = check_model(options, PruningConfig.from_dict({"method": "visionzip"})).settings
    assert settings["model"].startswith("llava-lora:") and settings["model_base"].startswith("vicuna:")
    loaded = LoadedModel.from_path(options)
    ids, mask, images = prompts("titt")
    with prune(loaded.model, PruningConfig.from_dict({"method": "fastv", "k": 1})) as session:
        loaded.model.generate(ids, images=images, max_new_tokens=2)
    assert session.traces[0].tokens_per_layer[-1] < session.traces[0].tokens_per_layer[0]
    torch.save({"base_model.model.model.mm_projector.9.weight": torch.ones(1)}, folder / "non_lora_trainables.bin")
    with pytest.raises(ValueError, match="4 weights are missing: model.mm_projector"):
        load(folder, vicuna)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "internvl"])
def test_families_of_transformers_take_peft_folders_of_any_spelling(tmp_path, family):
    base = write_family(tmp_path / "base", family)
    adapted = adapt(load(base), tmp_path / "adapter", base)
    expected = {name: tensor for name, tensor in adapted.merge_and_unload().state_dict().items()}
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    for old, new in [("", ""), ("base_model.model.model.language_model.", "base_model.model.language_model.model.")]:
        save_file({key.replace(old, new): tensor for key, tensor in load_file(path).items()}, path)
        merged = load(tmp_path / "adapter").state_dict()
        assert merged.keys() == expected.keys()
        for name, tensor in merged.items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5)


def edit(folder, change):
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: edit(f, lambda w: w.update({"base_model.model.x.lora_A.weight": torch.ones(4, 2)})),
            "belong to no weight",
        ),
        (
            lambda f: edit(f, lambda w: w.pop(next(k for k in w if "lora_B" in k))),
            "lack their A or B: .*q_proj|down_proj",
        ),
        (lambda f: edit(f, lambda w: w.update({k: v[:2] for k, v in w.items() if "lora_A" in k})), "expected rank 4"),
        (lambda f: config(f, use_dora=True), "use_dora=True, which is not supported: merge it with peft"),
        (lambda f: config(f, init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (lambda f: config(f, peft_type="IA3"), "peft_type 'IA3'"),
        (lambda f: config(f, base_model_name_or_path=None), "names no base model: give model_base"),
        (lambda f: config(f, base_model_name_or_path="/gone/away"), "model_base '/gone/away': no such folder"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors or adapter_model.bin"),
        (lambda f: save_file({"w": torch.ones(1)}, f / "model.safetensors"), "move one of them"),
    ],
)
def test_what_cannot_be_merged_is_named(base, tmp_path, change, message):
    adapt(load(base), tmp_path / "adapter", base)
    change(tmp_path / "adapter")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "adapter")


def config(folder, **changes):
    path = folder / "adapter_config.json"
    write_json(path, json.loads(path.read_text()) | changes)


def test_a_base_for_a_whole_model_is_refused(base):
    with pytest.raises(ValueError, match="no mm_projector.bin"):
        load(base, base)
