"""Configs: presets fill keys, mistakes give one clear error, JSON round trips."""

import json
import re
from pathlib import Path

import pytest

from llava.model.pruning import PruningConfig
from llava.model.pruning.families import FAMILIES

README = {
    "mode": ["shallow", "middle", "deep"],
    "shallow_mid_layer": 6,
    "layer_threshold": 0.995,
    "tokens_threshold": 0.2,
}
OPEN = {key: value for key, value in README.items() if key != "shallow_mid_layer"}
RANDOM = {"layer": 4, "keep": 20}


def test_the_readme_form_is_valid_and_means_the_paper_preset():
    config = PruningConfig.from_json(json.dumps(README))
    assert config == PruningConfig.from_dict({**README, "preset": "paper"})
    assert (config.exit_threshold, config.exit_patience, config.probe_offset) == (0.999, 2, 0)
    assert (config.kv, config.exit_votes, config.shallow_text) == ("needed", "consecutive", "remove")


def test_presets_differ_in_the_rows_of_the_table_and_any_row_can_be_set():
    paper, released = (PruningConfig.from_dict({**README, "preset": name}) for name in ("paper", "released"))
    assert (released.kv, released.exit_votes, released.probe_offset) == ("all", "cumulative", 1)
    mixed = PruningConfig.from_dict({**README, "preset": "released", "kv": "needed", "probe_offset": 0})
    assert (mixed.kv, mixed.probe_offset, mixed.exit_votes) == ("needed", 0, "cumulative")
    assert paper.attention(0).text == released.attention(0).text == "merge"
    assert paper.attention(1) != released.attention(1)
    assert paper.attention(6).dense
    assert released.attention(6).dense


@pytest.mark.parametrize("settings", [README, {"mode": []}, {"mode": ["deep"], "mid_deep_layer": 4}])
def test_to_dict_round_trips(settings, tmp_path):
    config = PruningConfig.from_dict(settings)
    assert PruningConfig.from_dict(config.to_dict()) == config
    path = tmp_path / "pruning.json"
    path.write_text(json.dumps(config.to_dict()))
    assert PruningConfig.of(str(path)) == PruningConfig.of(path) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**README, "layer_treshold": 0.9}, "unknown key 'layer_treshold'.*did you mean 'layer_threshold'"),
        ({**README, "method": "visiprunner"}, "unknown pruning method.*did you mean 'visipruner'"),
        ({**README, "method": ["visipruner"]}, "unknown pruning method"),
        ({**README, "preset": "papers"}, "did you mean 'paper'"),
        ({**README, "mode": "shallow"}, "'mode' must be a list"),
        ({**README, "mode": ["shalow"]}, "did you mean 'shallow'"),
        ({**README, "mode": ["deep", "deep", "middle"]}, "twice"),
        ({**README, "mode": [["deep"]]}, "'mode' must be one of"),
        ({}, "needs 'mode' .a list of shallow, middle, deep"),
        ({"mode": ["middle"]}, "needs 'layer_threshold' and 'tokens_threshold'"),
        ({"mode": ["deep"]}, "needs 'mid_deep_layer'"),
        ({**README, "shallow_mid_layer": "6"}, "integer.*got str"),
        ({**README, "shallow_mid_layer": 6.0}, "integer.*got float"),
        ({**README, "shallow_mid_layer": True}, "integer.*got bool"),
        ({**README, "shallow_mid_layer": 0}, "integer ≥ 1, got 0"),
        ({**README, "layer_threshold": 1.5}, "from 0 to 1, got 1.5"),
        ({**README, "layer_threshold": float("nan")}, "got nan"),
        ({**README, "layer_threshold": "high"}, "number from 0 to 1, got str"),
        ({**README, "tokens_threshold": -0.1}, "number ≥ 0, got -0.1"),
        ({**README, "tokens_threshold": float("inf")}, "got inf"),
        ({**README, "tokens_threshold": 10**400}, "'tokens_threshold' must be a number ≥ 0, got 1000000"),
        ({**README, "sink_token": 2**63}, "'sink_token' must be an integer ≥ 0, got 9223"),
        ({**README, "exit_patience": 0}, "integer ≥ 1"),
        ({**README, "exit_threshold": 2}, "from 0 to 1"),
        ({**README, "sink_token": -1}, "integer ≥ 0"),
        ({**README, "first_layer": "skip"}, "'merge', 'half'"),
        ({**README, "kv": None, "exit_votes": 3}, "'consecutive', 'cumulative'"),
        ({"mode": ["shallow", "deep"], "shallow_mid_layer": 6, "mid_deep_layer": 3}, "lies before"),
        ([1], "JSON object, got list"),
    ],
)
def test_each_mistake_is_one_clear_error(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        PruningConfig.of(json.dumps(settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{'mode': []}", "is not JSON"),
        ("nowhere/pruning.json", "cannot be read: No such file"),
        ("off", "pruning config 'off' is not JSON"),
        ("[" * 3000, "is not JSON"),
        (3, "a dict, JSON text or a .json path, got int"),
    ],
)
def test_sources_that_are_not_configs(source, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig.of(source)


def test_boundaries_are_checked_against_the_models_depth():
    PruningConfig.from_dict(README).check_layers(7)
    with pytest.raises(ValueError, match="'shallow_mid_layer' is 6, but the model has 6 layers; it must be at most 5"):
        PruningConfig.from_dict(README).check_layers(6)
    with pytest.raises(ValueError, match="'probe_offset' is 8, but the model has 7 layers: no layer would be probed"):
        PruningConfig.from_dict({**README, "probe_offset": 2}).check_layers(7)
    with pytest.raises(ValueError, match="'mid_deep_layer' is 40"):
        PruningConfig.from_dict({"mode": ["deep"], "mid_deep_layer": 40}).check_layers(32)
    PruningConfig.from_dict({"mode": [], "shallow_mid_layer": 40}).check_layers(32)


@pytest.mark.parametrize(
    ("layers", "expected"), [(1, 1), (2, 1), (12, 2), (24, 5), (28, 5), (32, 6), (36, 7), (40, 8), (48, 9)]
)
def test_an_open_shallow_boundary_scales_6_of_32_with_the_depth(layers, expected):
    config = PruningConfig.from_dict(OPEN)
    resolved = config.resolved(layers)
    assert resolved.shallow_mid_layer == expected
    assert resolved == PruningConfig.from_dict({**README, "shallow_mid_layer": expected})
    assert config.filled_in(layers) == {"shallow_mid_layer": expected}
    assert resolved.resolved(99) is resolved and resolved.filled_in(99) == {}


def test_the_table_of_models_names_every_family_and_its_filled_in_boundaries():
    table = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\| (\d+) \| (\d+) \|[^|]*\|$", table, re.MULTILINE)
    assert len(rows) == 12
    for layers, boundary in rows:
        assert PruningConfig.from_dict(OPEN).filled_in(int(layers)) == {"shallow_mid_layer": int(boundary)}
    for family in FAMILIES:
        for kind in family.model_types:
            assert f"| {kind} | all methods |" in table


def test_what_is_open_stays_open_until_the_depth_is_known():
    config = PruningConfig.from_dict(OPEN)
    config.resolved(28)
    assert "shallow_mid_layer" not in config.to_dict()
    assert PruningConfig.from_json(json.dumps(config.to_dict())) == config != config.resolved(32)
    for settings in (README, {"mode": []}, {"mode": ["deep"], "mid_deep_layer": 3}, {"method": "random", **RANDOM}):
        config = PruningConfig.from_dict(settings)
        assert config.resolved(32) is config and config.filled_in(32) == {}


def test_a_filled_in_boundary_is_checked_like_a_given_one():
    PruningConfig.from_dict(OPEN).check_layers(2)
    with pytest.raises(ValueError, match="'shallow_mid_layer' is 1, but the model has 1 layers"):
        PruningConfig.from_dict(OPEN).check_layers(1)
    early = PruningConfig.from_dict({"mode": ["shallow", "deep"], "mid_deep_layer": 4})
    early.check_layers(12)
    with pytest.raises(ValueError, match=r"'mid_deep_layer' \(4\) lies before 'shallow_mid_layer' \(6\)"):
        early.check_layers(32)


def test_a_source_that_holds_no_config_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.yaml").write_text("method: fastv\nk: 3\n")
    (tmp_path / "configs.json").mkdir()
    (tmp_path / "twice.json").write_text('{"method": "fastv", "k": 2, "k": 3}')
    (tmp_path / "plain").write_text('{"method": "fastv", "k": 3}')
    for source, message in [
        ("config.yaml", "'config.yaml' is not JSON .*YAML is not read; write the same settings as JSON"),
        ("nowhere.yaml", "'nowhere.yaml' cannot be read: No such file"),
        ("configs.json", "'configs.json' is a folder; give the .json file in it"),
        (".", "'.' is a folder"),
        ("~/twice.json", "'~/twice.json' has the key 'k' twice"),
        ('{"mode": [], "before": {"method": "divprune", "keep": 3, "keep": 4}}', "has the key 'keep' twice"),
        ("9" * 5000, "is not JSON"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            PruningConfig.of(source)
        assert "\n" not in str(caught.value)
    assert (
        PruningConfig.of("~/plain")
        == PruningConfig.of(Path("plain"))
        == PruningConfig.from_dict({"method": "fastv", "k": 3})
    )


def test_a_fixed_exit_beside_a_found_one_is_said_to_have_no_effect():
    with pytest.warns(UserWarning, match=r"'mid_deep_layer' \(20\) has no effect beside 'middle'"):
        PruningConfig.from_dict({**README, "mid_deep_layer": 20})


def test_config_files_may_begin_with_a_byte_order_mark_but_are_text(tmp_path):
    path = tmp_path / "pruning.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(README).encode())
    assert PruningConfig.of(path) == PruningConfig.from_dict(README)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="pruning.json' is not a text file"):
        PruningConfig.of(path)
