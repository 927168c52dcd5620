"""Masked layers: the command measures every mask of every checkpoint, at both ends and in windows."""

import csv
from types import SimpleNamespace

import pytest
import torch
from conftest import Prompts

from llava.model.pruning import PruningConfig, prune
from llava.tiny import masks
from llava.tiny.masks import EXPERIMENTS, experiments


def test_the_masks_are_read_from_the_prompt_on_and_drop_nothing(llama):
    prompts = Prompts("ttvvvvttt")
    answers, tokens = [], []
    for config in ({"method": "mask", "layers": (3, 4, 5)}, {"mode": ["deep"], "mid_deep_layer": 3}):
        with prune(llama, PruningConfig.from_dict(config), visual_mask=prompts.visual) as session:
            answers.append(llama.generate(**prompts.inputs, max_new_tokens=6, do_sample=False))
        tokens.append(session.traces[-1].tokens_per_layer)
    assert torch.equal(*answers) and tokens == [[9] * 6, [9, 9, 9, 5, 5, 5]]


def test_the_experiments_mask_both_ends_and_every_window():
    runs = list(experiments(12))
    assert len(runs) == 12 + 11 + 11 and {name for name, _, _ in runs} == set(EXPERIMENTS)
    assert ("shallow", 3, (0, 1, 2)) in runs and ("shallow", 12, tuple(range(12))) in runs
    assert ("deep", 9, (9, 10, 11)) in runs and ("window", 10, (10, 11)) in runs
    assert len({layers for _, _, layers in runs}) == len(runs) - 2  # (0, 1) and (10, 11) are an end and a window


def test_the_command_writes_a_table_and_a_picture(tmp_path, monkeypatch, capsys):
    asked = []

    def measure(loaded, scenes, pruning_config=None):
        asked.append(pruning_config)
        layers = pruning_config["layers"] if pruning_config else ()
        return {"text": (10 - len(layers), 10), "exist": (5, 10)}

    model = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=4))

    monkeypatch.setattr(masks, "measure", measure)
    monkeypatch.setattr("llava.model.preflight.check_model", lambda options, config: None)
    monkeypatch.setattr("llava.model.loaded.LoadedModel.from_path", lambda options: SimpleNamespace(model=model))
    masks.main(["--model-path", "a/tiny", "b/plain", "--scenes", "1", "--out", str(tmp_path)])
    with (tmp_path / "masks.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (1 + 4 + 3 + 3) == len(asked)
    assert rows[0]["masked"] == "" and float(rows[0]["mean"]) == pytest.approx(0.75)
    (row,) = (r for r in rows if (r["checkpoint"], r["experiment"], r["k"]) == ("plain", "deep", "1"))
    assert row["masked"] == "1 2 3" and float(row["text"]) == pytest.approx(0.7)
    assert (tmp_path / "masks.png").read_bytes().startswith(b"\x89PNG")
    assert "masks.png" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--scenes", "0"], ["--model-path", "a/x", "b/x"], ["--model-path", "none/there"]])
def test_bad_arguments_are_one_line_before_weights_are_read(given, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("llava.model.loaded.LoadedModel.from_path", None)
    try:
        status = masks.main(["--out", str(tmp_path), *given])
    except SystemExit as left:
        status = left.code
    assert status in (1, 2) and capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "masks.csv").exists()
