"""The suite: benchmarks × configs from questions to table, JSON and plot; and how tuning chooses."""

import json

import pytest
from PIL import Image

from llava.eval import suite
from llava.eval.runner.paired import _figures
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import write_benchmarks

HALF = '{"method":"random","layer":3,"keep":20}'


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_benchmarks(folder, questions=10, seed=7)
    return folder


def arguments(data, out, *more):
    names = ["--benchmarks", "gqa_mini", "mme_mini", "textvqa_mini", "--rounds", "2", "--timed-questions", "4"]
    return ["--model-path", CHECKPOINT, "--data-dir", str(data), "--out", str(out), *names, *more]


def test_a_suite_runs_scores_times_and_draws_every_config(data, tmp_path, capsys):
    assert suite.main(arguments(data, tmp_path, "--config", f"half={HALF}", "--device", "cpu")) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    dense, half = summary["rows"]["dense"], summary["rows"]["half"]
    assert set(dense["scores"]) == {"gqa_mini", "mme_mini", "textvqa_mini"}
    assert dense["flops"] == dense["dense_flops"] > half["flops"]
    assert dense["kv_bytes"] > half["kv_bytes"]
    assert dense["speedup"] == 1 and len(half["prefill_ms_rounds"]) == 2
    assert half["tokens_per_layer"][4] == pytest.approx(dense["tokens_per_layer"][4] - 124)
    assert summary["configs"]["half"] == {"method": "random", "layer": 3, "keep": 20, "seed": 0}
    run = summary["runs"]["half"]["mme_mini"]
    assert run["totals"]["questions"] == dense["questions"] / 3 == 10
    with Image.open(tmp_path / "summary.png") as picture:
        assert picture.width > 800
    table = capsys.readouterr().out
    assert all(word in table for word in ("speed-up", "half", "mme_mini", "of 1000", "textvqa_mini"))
    assert "…" not in table


@pytest.mark.parametrize(
    ("config", "message"),
    [("half", "NAME=CONFIG"), (f"dense={HALF}", "built in"), ('half={"mode":["deep"]}', "mid_deep_layer")],
)
def test_bad_configs_are_refused_by_the_command_line(data, tmp_path, capsys, config, message):
    assert suite.main(arguments(data, tmp_path, "--config", config)) == 1
    assert message in capsys.readouterr().err


def test_names_and_boundaries_are_checked_before_anything_is_asked(data, tmp_path, capsys):
    assert suite.main(arguments(data, tmp_path, "--config", f"a={HALF}", "--config", f"a={HALF}")) == 1
    assert "the name 'a' is taken" in capsys.readouterr().err
    assert suite.main(arguments(data, tmp_path, "--config", 'b={"method":"random","layer":13,"keep":2}')) == 1
    assert "config 'b': 'layer' is 13, but the model has 12 layers" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_benchmarks_say_what_to_put_where(tmp_path, capsys):
    assert suite.main(arguments(tmp_path, tmp_path)) == 1
    assert "llava.tiny.benchmarks" in capsys.readouterr().err


def test_speed_up_is_the_median_of_the_rounds_ratios():
    figures = _figures([10.0, 40.0, 10.0], [1.0, 1.0, 2.0], baseline=[20.0, 40.0, 30.0])
    assert figures["speedup"] == 2.0
    assert figures["speedup_range"] == [1.0, 3.0]
    assert (figures["prefill_ms"], figures["decode_ms_per_token"]) == (10.0, 1.0)
