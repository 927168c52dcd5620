"""A checkpoint that was trained with a schedule runs as it was trained, without being asked to, and dense with none."""

import json
import shutil

import pytest
import torch
from llava_fixtures import make_model, write_json
from loader_fixtures import Bench, forbid_loading, write_images, write_model

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model import preflight
from llava.model.builder import load_pretrained_model
from llava.model.language_model.configuration_llava import HIDROP
from llava.model.pruning import PruningConfig, prune

SCHEDULE = {"method": "schedule", "enter": 1, "keep": {"2": 1}}
VICA = {"method": "schedule", "frozen": True, "read": [0, 2], "system": "zero"}


def set_config(folder, **changes) -> None:
    raw = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", raw | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A HiDrop checkpoint that says its schedule, and images."""
    root = tmp_path_factory.mktemp("trained")
    model = write_model(root / "hidrop")
    set_config(model, model_type=HIDROP, architectures=["LlavaLlamaForCausalLMExitTopk"], visual_schedule=SCHEDULE)
    return model, write_images(root / "images")


@pytest.mark.parametrize(("given", "layers"), [(None, [0, 4, 1]), ("none", [4, 4, 4]), (json.dumps(VICA), [0, 0, 0])])
def test_a_command_runs_the_schedule_of_the_checkpoint_unless_told_otherwise(trained, tmp_path, given, layers):
    bench = Bench(tmp_path, *trained)
    assert bench.run("--limit", "2", pruning_config=given) == 0
    record, row = bench.record(), bench.rows()[0]
    expected = {None: SCHEDULE, "none": None}.get(given, VICA)
    expected = None if expected is None else PruningConfig.from_dict(expected).to_dict()
    assert record["settings"]["pruning_config"] == expected
    assert record["visual_schedule"] == SCHEDULE
    text = row["metadata"]["prompt_tokens"] - 4
    assert row["metadata"]["tokens_per_layer"] == [text + visual for visual in layers]


def test_python_runs_it_in_generate_and_in_prune(trained):
    path, _ = trained
    tokenizer, model, *_ = load_pretrained_model(str(path), None, "llava-hidrop", device="cpu")
    ids = torch.tensor([[1, 5, 6, IMAGE_TOKEN_INDEX, 7, 8]])
    images = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))

    def ask(**more):
        return model.generate(
            ids, images=images, max_new_tokens=4, output_logits=True, return_dict_in_generate=True, **more
        ).logits[0]

    with torch.no_grad(), prune(model) as session:
        inside = ask()
    assert session.config == PruningConfig.from_dict(SCHEDULE)
    assert torch.equal(ask(), inside) and torch.equal(ask(pruning_config=SCHEDULE), inside)
    dense = ask(pruning_config="none")
    assert not torch.equal(dense, inside)
    with prune(model, {"method": "none"}):
        assert (ask() - dense).abs().max() < 1e-4
    assert model.config.to_dict()["visual_schedule"] == SCHEDULE
    with pytest.raises(ValueError, match="prune needs a config: this LlavaLlamaForCausalLM was trained with no"):
        prune(make_model())


def test_hidrops_own_files_do_not_say_their_schedule(trained, tmp_path, monkeypatch, capsys):
    path, images = trained
    raw = json.loads((path / "config.json").read_text())
    forbid_loading(monkeypatch)
    folder = tmp_path / "published"
    shutil.copytree(path, folder)
    write_json(folder / "config.json", {key: value for key, value in raw.items() if key != "visual_schedule"})
    assert Bench(tmp_path, folder, images).run() == 1
    assert "was trained with HiDrop and does not say its schedule" in capsys.readouterr().err
    assert preflight.default_config(path) == PruningConfig.from_dict(SCHEDULE)
    set_config(folder, visual_schedule={"method": "schedule", "enter": -1})
    assert Bench(tmp_path, folder, images).run() == 1
    assert "visual_schedule in" in capsys.readouterr().err
