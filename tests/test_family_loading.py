"""Checkpoints in transformers' own layout: which load, errors of damaged ones, and the processor."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from family_checkpoints import FAMILIES, write_family, write_json
from llava_fixtures import make_model, write_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file

from llava import load_pretrained_model
from llava.cli import ModelOptions
from llava.model import builder, processors
from llava.model.formats import read_layout
from llava.model.inputs import inputs_for
from llava.model.loaded import LoadedModel
from llava.model.preflight import check_model
from llava.model.pruning.families import model_class


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A family's name and a checkpoint of it, not to be written to."""
    return request.param, write_family(tmp_path_factory.mktemp(request.param) / "m", request.param)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint to damage."""
    return write_family(tmp_path / "m", "qwen2_vl")


def load(folder, **options):
    return load_pretrained_model(folder, None, "m", device="cpu", **options)


def edit_json(path, **changes):
    write_json(path, json.loads(path.read_text()) | changes)


def test_every_family_loads_as_llava_does_and_says_nothing(family, capfd):
    name, folder = family
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer, model, processor, context = load(folder)
    assert type(model) is model_class(name) and not model.training and model.dtype == torch.float32
    assert isinstance(processor, hf.ProcessorMixin) and processor.tokenizer is tokenizer
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id is not None and context == 1024
    assert model.config._attn_implementation == "sdpa" and model.generation_config.top_k == 1
    written = model_class(name).from_pretrained(folder).state_dict()
    assert all(torch.equal(written[key], tensor) for key, tensor in model.state_dict().items())
    assert read_layout(folder).layers == model.config.get_text_config().num_hidden_layers == 6
    capfd.readouterr()
    load(folder)
    assert capfd.readouterr() == ("", "")


def test_weights_do_not_change_with_their_file(folder):
    model = load(folder)[1]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-2000, 2)
        file.write(b"\x55" * 2000)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s, k: s.pop(k), r"1 weights are missing: .*layers.2.mlp.up_proj.weight"),
        (
            lambda s, k: s.update({"model.extra.weight": torch.ones(2)}),
            "1 weights are unexpected: .*extra.weight",
        ),
        (
            lambda s, k: s.update({k: torch.ones(7, 48)}),
            r"wrong shape: .*up_proj.weight \[7, 48\] instead of",
        ),
        (lambda s, k: s.update({k: s[k].to(torch.int8)}), r"not floating point: .*up_proj.weight \(torch.int8\)"),
    ],
)
def test_wrong_weights_are_named(family, tmp_path, edit, message):
    name, folder = family
    copy = copy_of(folder, tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    edit(state, next(key for key in state if key.endswith("layers.2.mlp.up_proj.weight")))
    save_file(state, copy / "model.safetensors")
    with pytest.raises(ValueError, match=message) as raised:
        load(copy)
    assert "\n" not in str(raised.value)


def copy_of(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_rotary_buffers_of_old_checkpoints_are_ignored(folder):
    state = load_file(folder / "model.safetensors")
    save_file(state | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, folder / "model.safetensors")
    load(folder)


def test_broken_and_missing_files_are_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="model.safetensors is not a readable weight file"):
        load(folder)
    path.unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        load(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="no processor that loads"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "idefics"}, "model_type 'idefics', which is not known here; known are llava, .*internvl_chat"),
        ({"model_type": None}, "model_type None"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised checkpoint: load the original"),
        ({"text_config": {"num_attention_heads": "many"}}, "not a configuration that transformers reads"),
        ({"image_token_id": 7}, r"image token '<\|image_pad\|>' has the id \d+, the model's is 7"),
    ],
)
def test_configurations_that_cannot_load_say_why_before_weights_are_read(folder, changes, message):
    (folder / "model.safetensors").write_bytes(b"not read")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message) as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def test_a_processor_without_a_chat_template_is_refused(folder):
    (folder / "chat_template.json").unlink()
    load(folder)  # the tokenizer's own is there
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    write_json(folder / "tokenizer_config.json", settings)
    with pytest.raises(ValueError, match="has no chat template"):
        load(folder)


def test_a_folder_without_a_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has no tokenizer: expected one of tokenizer.json"):
        load(folder)


def test_a_tokenizer_larger_than_the_model_and_a_model_base_are_refused(folder):
    with pytest.raises(ValueError, match="model_base was given"):
        load_pretrained_model(folder, folder, "m", device="cpu")
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", text_config=config["text_config"] | {"vocab_size": 200})
    with pytest.raises(ValueError, match="298 tokens, the model 200"):
        load(folder)


def test_tiles_of_other_sizes_than_the_models_are_refused_before_weights_are_read(tmp_path):
    folder = write_family(tmp_path / "m", "internvl")
    (folder / "model.safetensors").write_bytes(b"not read")
    (folder / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="gives each tile 256 tokens .*, the model 16: the files do not belong"):
        load(folder)


def test_a_processor_without_its_video_part_reads_the_other_settings(tmp_path):
    folder = write_family(tmp_path / "m", "llava_onevision")
    edit_json(folder / "processor_config.json", vision_aspect_ratio="anyres_max_4", num_image_tokens=25)
    edit_json(folder / "config.json", vision_aspect_ratio="anyres_max_4")
    processor = load(folder)[2]
    assert (processor.vision_aspect_ratio, processor.num_image_tokens) == ("anyres_max_4", 25)


class Recorder:
    """Stands in for a class that is loaded from a folder, and notes that it was."""

    def __init__(self, made):
        self.made, self.asked = made, []

    def from_pretrained(self, folder):
        self.asked.append(folder)
        return self.made


@pytest.mark.parametrize("there", [True, False])
def test_torchvision_decides_the_processor(folder, monkeypatch, there):
    processor = load(folder)[2]
    automatic, alone = Recorder(processor), Recorder(processor)
    monkeypatch.setattr(processors, "is_torchvision_available", lambda: there)
    monkeypatch.setattr(processors, "AutoProcessor", automatic)
    monkeypatch.setattr(processors, "images_alone", lambda kind: alone)
    load(folder)
    assert (automatic.asked, alone.asked) == (([folder], []) if there else ([], [folder]))


@pytest.mark.parametrize("there", [True, False])
def test_torchvision_decides_the_image_processor_of_the_original_layout(tmp_path, monkeypatch, there):
    folder = write_checkpoint(tmp_path / "m", make_model())
    made = load(folder)[2]
    fast, plain = Recorder(made), Recorder(made)
    monkeypatch.setattr(builder, "is_torchvision_available", lambda: there)
    monkeypatch.setattr(hf, "CLIPImageProcessor", fast, raising=False)
    monkeypatch.setattr(hf, "CLIPImageProcessorPil", plain)
    load(folder)
    assert (len(fast.asked), len(plain.asked)) == ((1, 0) if there else (0, 1))


def test_bounds_of_images_are_those_that_were_asked_for(folder):
    image = Image.new("RGB", (64, 48), "red")
    options = ModelOptions(model_path=str(folder), device="cpu")
    counts = []
    for bounds in ({}, {"min_pixels": 128, "max_pixels": 256}, {"min_pixels": 4096, "max_pixels": 8192}):
        bounded = replace(options, **bounds)
        settings = check_model(bounded, None).settings
        assert {key: settings[key] for key in ("min_pixels", "max_pixels") if key in settings} == bounds
        ids = LoadedModel.from_path(bounded).inputs.prepare(image).ids
        counts.append(len(ids))
    assert counts[1] <= 256 / 64 < counts[0] <= 1024 / 64 < 4096 / 64 <= counts[2] <= 8192 / 64
    for bounds, message in [
        ({"max_pixels": 63}, "at least 64 .one visual token"),
        ({"min_pixels": 2048}, "images from 2048 to 1024 pixels"),
        ({"min_pixels": 9, "max_pixels": 8}, "min_pixels=9 is larger than max_pixels=8"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(folder, **bounds)


def test_bounds_of_images_are_refused_where_images_have_one_size(tmp_path):
    folder = write_family(tmp_path / "m", "llava")
    (folder / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ValueError, match="max_pixels=500 given, but images of model_type 'llava' have a fixed size"):
        check_model(ModelOptions(model_path=str(folder), device="cpu", max_pixels=500), None)


@pytest.mark.parametrize(
    ("device", "device_map", "placed"),
    [
        ("cuda", "auto", "auto"),
        ("auto", "auto", "auto"),
        ("cuda:0", "auto", {"": "cuda:0"}),
        ("auto", None, {"": "cuda"}),
    ],
)
def test_one_gpu_shares_with_the_host_where_the_caller_leaves_the_device_open(
    folder, monkeypatch, device, device_map, placed
):
    given = {}
    monkeypatch.setattr(builder, "pick_device", lambda name: torch.device("cuda" if name == "auto" else name))
    monkeypatch.setattr(builder, "build_model", lambda *words, **options: given.update(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_pretrained_model(folder, None, "m", device=device, device_map=device_map)
    assert given["device_map"] == (placed if placed == "auto" else {"": torch.device(placed[""])})
    assert given["dtype"] == torch.float16


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_offloaded_models_encode_images(tmp_path, family):
    """`image_newline` belongs to the module around the tower, whose forward does not run here."""
    folder, features = write_family(tmp_path / "m", family), []
    for device_map in (None, {"": "disk"}):
        options = {"device": "cpu", "device_map": device_map, "offload_folder": tmp_path / "away"}
        tokenizer, model, processor, _ = load_pretrained_model(folder, None, "name", **options)
        inputs = inputs_for(tokenizer, processor, model.config)
        [seen] = inputs.encode_images(model, [inputs.prepare(Image.new("RGB", (60, 40), "red"))])
        features.append(torch.cat(seen.content.features))
    assert torch.equal(*features)


@pytest.mark.parametrize("config", [hf.Gemma3Config(), hf.PaliGemmaConfig()])
def test_a_family_whose_prompts_need_token_types_is_refused(config):
    with pytest.raises(ValueError, match="need token types, which evaluation and chat do not make"):
        processors.check_processor(None, config, Path("model"))
