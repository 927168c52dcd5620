"""Loading: the original on-disk layout in all its spellings, and clear errors for everything else."""

import json
import warnings

import pytest
import torch
from llava_fixtures import LLAMA, make_model, prompts, write_checkpoint, write_json, write_weights
from PIL import Image
from safetensors.torch import load_file, save_file

from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import read_file


@pytest.fixture(scope="module")
def model():
    return make_model(seed=3)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "llava-small", model)


def load(folder, **kwargs):
    return load_pretrained_model(str(folder), None, "llava-small", device="cpu", **kwargs)


def edit_json(path, **changes):
    write_json(path, json.loads(path.read_text()) | changes)


@torch.no_grad()
def assert_equal_logits(loaded, model):
    ids, mask, images = prompts("titt", "ttt")
    ours = loaded(ids, attention_mask=mask, images=images).logits
    torch.testing.assert_close(ours, model(ids, attention_mask=mask, images=images).logits, atol=0, rtol=0)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_every_file_kind_gives_the_same_model(model, tmp_path, kind, shards):
    folder = write_checkpoint(tmp_path / "m", model, kind=kind, shards=shards, model_type="llava_llama")
    tokenizer, loaded, processor, context = load(folder)
    assert_equal_logits(loaded, model)
    assert context == 128 and not loaded.training and loaded.config.model_type == "llava_llama"
    assert loaded.dtype == torch.float32 and loaded.config._attn_implementation == "sdpa"
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id is not None
    assert loaded.generation_config.pad_token_id is not None


def test_prompt_and_image_files_to_an_answer_without_a_warning(model, tmp_path, capfd):
    folder = write_checkpoint(tmp_path / "m", model)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer, model, processor, _ = load(folder)
        images = process_images([Image.new("L", (40, 20))], processor, model.config)
        ids = tokenizer_image_token("USER: <image>\nWhat? ASSISTANT:", tokenizer, return_tensors="pt")[None]
        out = model.generate(ids, images=images, image_sizes=[(40, 20)], do_sample=False, max_new_tokens=3)
    assert out.shape[0] == 1 and 1 <= out.shape[1] <= 3
    assert "[transformers]" not in capfd.readouterr().err


def test_weights_do_not_change_with_their_files(model, tmp_path):
    folder = write_checkpoint(tmp_path / "m", model, kind="bin")
    loaded = load(folder)[1]
    for path in (folder / "pytorch_model.bin", folder / "vision_tower" / "model.safetensors"):
        with open(path, "r+b") as file:
            file.seek(-2000, 2)
            file.write(b"\x55" * 2000)
    assert_equal_logits(loaded, model)


def test_tower_inside_the_checkpoint_is_used(model, tmp_path):
    folder = write_checkpoint(tmp_path / "m", model, tower_inside=True)
    assert not (folder / "vision_tower" / "model.safetensors").exists()
    assert_equal_logits(load(folder)[1], model)


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_tower_spellings_and_whole_clip(model, tmp_path, prefix, absolute):
    folder = write_checkpoint(tmp_path / "m", model)
    path = folder / "vision_tower" / "model.safetensors"
    state = {prefix + name.removeprefix("vision_model."): tensor for name, tensor in load_file(path).items()}
    if prefix:  # a whole CLIP has this prefix, a text part, and the position buffers of older versions
        state |= {"text_model.final_layer_norm.weight": torch.ones(3), "logit_scale": torch.tensor(1.0)}
        state |= {"vision_model.embeddings.position_ids": torch.arange(5)}
        config = json.loads((folder / "vision_tower" / "config.json").read_text())
        write_json(folder / "vision_tower" / "config.json", {"model_type": "clip", "vision_config": config})
    save_file(state, path)
    if absolute:
        (folder / "vision_tower").rename(tmp_path / "clip")
        edit_json(folder / "config.json", mm_vision_tower=str(tmp_path / "clip"))
    assert_equal_logits(load(folder)[1], model)


def test_linear_projector_and_tied_head(tmp_path):
    model = make_model(mm_projector_type="linear", tie_word_embeddings=True)
    folder = write_checkpoint(tmp_path / "m", model, edit=lambda state: state.pop("lm_head.weight"))
    assert_equal_logits(load(folder)[1], model)


def test_stale_buffers_are_ignored(model, tmp_path):
    def edit(state):
        state["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    assert_equal_logits(load(write_checkpoint(tmp_path / "m", model, edit=edit))[1], model)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("model.mm_projector.0.weight"), "1 weights are missing: model.mm_projector.0.weight"),
        (lambda s: s.pop("lm_head.weight"), "1 weights are missing: lm_head.weight"),
        (lambda s: [s.pop(k) for k in list(s) if "layers.2" in k], "9 weights are missing: .* and 4 more"),
        (lambda s: s.update({"model.extra.weight": torch.ones(2)}), "1 weights are unexpected: model.extra.weight"),
        (lambda s: s.update({"rotary_emb.inv_freq": torch.ones(2)}), "unexpected: rotary_emb.inv_freq"),
        (
            lambda s: s.update({"model.norm.weight": torch.ones(7)}),
            r"wrong shape: model.norm.weight \[7\] instead of \[32\]",
        ),
        (
            lambda s: s.update({"lm_head.weight": torch.ones(320, 32, dtype=torch.int8)}),
            r"not floating point: lm_head.weight \(torch.int8\)",
        ),
    ],
)
def test_wrong_weights_are_named(model, tmp_path, kind, shards, edit, message):
    folder = write_checkpoint(tmp_path / "m", model, kind=kind, shards=shards, edit=edit)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_wrong_weights_of_the_tower_are_named(model, tmp_path):
    folder = write_checkpoint(tmp_path / "m", model)
    path = folder / "vision_tower" / "model.safetensors"
    state = load_file(path)
    gone = next(name for name in state if "layers.1.mlp.fc1.weight" in name)
    save_file({name: tensor for name, tensor in state.items() if name != gone}, path)
    with pytest.raises(ValueError, match="1 weights are missing: .*layers.1.mlp.fc1.weight"):
        load(folder)
    save_file(state | {"decoder.weight": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="1 weights are unexpected: .*decoder.weight"):
        load(folder)


def test_broken_files_are_named(model, tmp_path):
    folder = write_checkpoint(tmp_path / "m", model, shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors is not a readable weight file"):
        load(folder)
    shard.unlink()
    with pytest.raises(ValueError, match="1 shards are missing: model-00002-of-00002.safetensors"):
        load(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        load(folder)


def test_bin_files_cannot_run_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("this must not run",))

    torch.save({"weight": Payload()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not a readable weight file"):
        read_file(tmp_path / "pytorch_model.bin")
    torch.save([1, 2], tmp_path / "list.bin")
    with pytest.raises(ValueError, match="not a state dict"):
        read_file(tmp_path / "list.bin")
    old = tmp_path / "old.bin"
    torch.save({"w": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    assert read_file(old)["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava_mistral"}, "model_type 'llava_mistral'"),
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"text_config": {}}, "has no processor that loads"),
        ({"mm_vision_tower": None}, "mm_vision_tower None"),
        ({"mm_vision_tower": "/nowhere/clip"}, "mm_vision_tower '/nowhere/clip': no such folder"),
        ({"image_aspect_ratio": "anyres"}, "image_grid_pinpoints None"),
        ({"mm_projector_type": "ldpnet"}, "mm_projector_type 'ldpnet'"),
        ({"mm_hidden_size": 17}, "mm_hidden_size is 17, but the vision tower .* is 16 wide"),
        ({"vocab_size": 300}, "320 tokens, the model 300"),
        ({"mm_use_im_start_end": True}, "322 tokens, the model 320"),
    ],
)
def test_layouts_that_cannot_load_say_why_before_weights_are_read(model, tmp_path, changes, message):
    folder = write_checkpoint(tmp_path / "m", model)
    (folder / "model.safetensors").write_bytes(b"not read")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_bad_paths_and_options(folder, tmp_path):
    cases = [
        ({"model_path": "/no/such/place"}, "no such folder"),
        ({"model_path": str(tmp_path)}, "no config.json"),
        ({"load_8bit": True, "load_4bit": True}, "choose one"),
        ({"device": "gpu"}, "device 'gpu' is unknown"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"dtype": "int4"}, "dtype 'int4'"),
    ]
    for change, message in cases:
        arguments = {"model_path": str(folder), "model_base": None, "model_name": "llava"} | change
        with pytest.raises(ValueError, match=message):
            load_pretrained_model(**arguments)


def test_a_hub_name_that_is_not_cached_says_so_offline(tmp_path):
    with pytest.raises(ValueError, match="neither a folder here nor could it be fetched"):
        load_pretrained_model("someone/llava-x", None, "llava-x", cache_dir=tmp_path, local_files_only=True)


def test_a_hub_name_loads_from_the_cache(model, tmp_path):
    repo = tmp_path / "models--someone--llava-x"
    write_checkpoint(repo / "snapshots" / "0123abc", model)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0123abc")
    hub = {"cache_dir": tmp_path, "local_files_only": True}
    _, loaded, _, _ = load_pretrained_model("someone/llava-x", None, "llava-x", device="cpu", **hub)
    assert_equal_logits(loaded, model)


def test_quantised_loading_without_bitsandbytes(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        load(folder, load_4bit=True)


def test_projector_on_a_base_model(model, tmp_path):
    whole = write_checkpoint(tmp_path / "whole", model)
    state = load_file(whole / "model.safetensors")
    projector = {name: state.pop(name) for name in list(state) if "mm_projector" in name}
    base, folder = tmp_path / "base", tmp_path / "llava-pretrain"
    whole.rename(base)
    write_weights(base, state)
    folder.mkdir()
    (base / "config.json").rename(folder / "config.json")
    (base / "vision_tower").rename(folder / "vision_tower")
    write_json(base / "config.json", LLAMA | {"model_type": "llama"})
    with pytest.raises(ValueError, match="no mm_projector.bin"):
        load_pretrained_model(folder, base, "llava-pretrain", device="cpu")
    torch.save(projector, folder / "mm_projector.bin")
    assert_equal_logits(load_pretrained_model(folder, base, "llava-pretrain", device="cpu")[1], model)


@pytest.mark.parametrize("name", ["float16", "bf16", torch.float32])
def test_dtype(folder, name):
    expected = {"float16": torch.float16, "bf16": torch.bfloat16}.get(name, name)
    loaded = load(folder, torch_dtype=name)[1]
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
    ids, mask, images = prompts("titt")
    with torch.no_grad():
        assert loaded(ids, images=images).logits.isfinite().all()


def test_preprocessor_is_required(model, tmp_path):
    folder = write_checkpoint(tmp_path / "m", model)
    (folder / "vision_tower" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        load(folder)
