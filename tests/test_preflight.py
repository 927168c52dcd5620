"""Unsupported checkpoints are refused from their configuration files, without weights."""

import pytest
import torch
from family_checkpoints import FAMILIES, write_family
from internvl_fixtures import write_original
from loader_fixtures import Bench, write_images, write_model

from llava import PruningConfig, load_pretrained_model
from llava.model import preflight
from llava.model.checkpoint import Source
from llava.model.formats import read_layout
from llava.model.preflight import resolve, skeleton

ZIP = PruningConfig.from_dict({"method": "visionzip", "dominant": 3, "contextual": 1})
COMPACT = PruningConfig.from_dict({"method": "divprune", "share": 0.5, "positions": "compact"})
FLAT = PruningConfig.from_dict({"method": "vtw", "before": {"method": "divprune", "share": 0.5}})


@pytest.fixture(scope="module", params=["original", "internvl original", *FAMILIES])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    if request.param == "original":
        write_model(folder)
    elif request.param == "internvl original":
        write_original(folder)
    else:
        write_family(folder, request.param)
    return request.param, folder


def test_a_skeleton_is_the_model_without_its_weights(checkpoint):
    _, folder = checkpoint
    model = load_pretrained_model(folder, None, "model", device="cpu")[1]
    bones = skeleton(Source(folder), read_layout(folder))
    assert type(bones) is type(model)
    shapes = [{name: weight.shape for name, weight in one.named_parameters()} for one in (model, bones)]
    assert shapes[0].keys() - shapes[1].keys() <= {"lm_head.weight"}  # InternVL's weights tell whether it is tied
    assert shapes[1].items() <= shapes[0].items()
    assert {weight.device.type for weight in bones.parameters()} == {"meta"}


def test_what_a_family_cannot_do_is_refused_and_all_else_is_not(checkpoint):
    name, folder = checkpoint
    for config, refused in ((ZIP, name not in ("original", "llava")), (COMPACT, "qwen" in name)):
        if refused:
            with pytest.raises(ValueError, match="image encoder|which cannot be renumbered"):
                resolve(config, Source(folder))
        else:
            assert resolve(config, Source(folder)) == (config, {})
    layers = read_layout(folder).layers
    assert resolve(FLAT, Source(folder))[1] == {"k": FLAT.resolved(layers).k}
    assert resolve(None, Source(folder)) == (None, {})


def test_a_skeleton_is_made_for_those_that_need_it_only(tmp_path, monkeypatch):
    folder = write_model(tmp_path / "model")
    monkeypatch.setattr(preflight, "skeleton", lambda *arguments: pytest.fail("built"))
    resolve(FLAT, Source(folder))
    late = {"method": "pyramiddrop", "layers": [90], "ratios": [0.5], "positions": "compact"}
    with pytest.raises(ValueError, match="'layers'"):
        resolve(PruningConfig.from_dict(late), Source(folder))


def test_commands_say_so_before_weights_are_read(tmp_path, capfd):
    folder = write_family(tmp_path / "model", "qwen2_vl")
    for weights in folder.glob("*.safetensors"):
        weights.write_bytes(b"not read")
    bench = Bench(tmp_path, folder, write_images(tmp_path / "images"))
    assert bench.run(pruning_config='{"method":"visionzip","dominant":3,"contextual":1}') == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: method 'visionzip' needs an image encoder") and "Qwen2VL" in error
    assert torch.get_default_device().type == "cpu"
