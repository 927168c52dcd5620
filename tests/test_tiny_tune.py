"""Tuning of the small model: the search tries few settings; the cheapest that loses little is chosen and written."""

import json
from types import SimpleNamespace

import pytest

from llava.eval.runner.evaluator import Evaluator
from llava.eval.tuning.search import last_passing
from llava.model.pruning import PruningConfig
from llava.tiny import tune
from llava.tiny.tune import EXITS, SHALLOW, TOKENS, choose, search


def test_tuning_takes_the_cheapest_that_loses_little_else_the_smallest_loss():
    dense = {"a": 90.0, "b": 80.0}
    rows = [
        {"accuracy": {"a": 89.5, "b": 80.0}, "flops": 0.6},
        {"accuracy": {"a": 89.1, "b": 79.2}, "flops": 0.5},
        {"accuracy": {"a": 92.0, "b": 70.0}, "flops": 0.2},
    ]
    assert choose(dense, rows, points=1.0) is rows[1]
    assert choose(dense, rows, points=0.2) is rows[0]


@pytest.mark.parametrize("last", range(-1, 9))
def test_bisection_finds_the_last_that_passes_in_few_questions(last):
    asked = []
    found = last_passing(range(9), lambda value: asked.append(value) or value <= last)
    assert found == (None if last < 0 else last)
    assert len(asked) <= 4


@pytest.mark.parametrize("reads", [True, False], ids=["without self-attention", "with it only"])
def test_the_search_finds_the_most_aggressive_passing_settings_with_few_trials(reads):
    asked, passed = [], []

    def ask(settings):
        asked.append(settings)
        if settings["tokens_threshold"] > 1 or settings["exit_threshold"] < 0.98 or settings["shallow_mid_layer"] < 4:
            return None
        if settings["layer_threshold"] > 0.999:
            return None
        if settings["shallow_visual"] == "remove" and not reads:
            return None
        flops = settings["exit_threshold"] - settings["tokens_threshold"] - settings["layer_threshold"]
        passed.append((flops, settings))
        return passed[-1][0]

    search(ask)
    _, best = min(passed, key=lambda row: row[0])
    assert (best["tokens_threshold"], best["exit_threshold"], best["shallow_mid_layer"]) == (1.0, 0.98, SHALLOW[0])
    assert best["shallow_visual"] == ("remove" if reads else "dense") and best["layer_threshold"] == 0.999
    assert 1.0 in TOKENS and 0.98 in EXITS and len(asked) <= (14 if reads else 22)


def test_what_was_tried_is_printed_and_what_was_chosen_written(tmp_path, monkeypatch, capsys):
    def run(evaluator, plan):
        lost = 0.0 if plan.config is None else 20 * (plan.config.tokens_threshold > 0.3) + 0.5
        share = 100 if plan.config is None else 60 - plan.config.tokens_threshold
        sums = {"flops_all_tokens": share, "flops": share - 10, "dense_flops_all_tokens": 100, "dense_flops": 100}
        return SimpleNamespace(scores={"accuracy": 90.0 - lost}, costs=SimpleNamespace(sums=sums))

    def plan(evaluator, benchmark, folder, answers_file, config):
        return SimpleNamespace(benchmark=benchmark, config=config)

    monkeypatch.setattr(Evaluator, "plan", plan)
    monkeypatch.setattr(Evaluator, "run", run)
    assert tune.main(["--write", str(tmp_path / "pruning.json")]) == 0
    written = PruningConfig.from_json(tmp_path / "pruning.json")
    assert (written.mode, written.tokens_threshold) == (("shallow", "middle", "deep"), 0.3)
    table, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    assert json.loads(last)["loss"] == 0.5 and "89.5" in table and "59.7%" in table
    assert tune.main(["--points", "0.1"]) == 0
    assert "no setting stays within 0.1 points" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--write", "none/there.json"], ["--data-dir", "none"], ["--model-path", "none"]])
def test_bad_input_is_one_line_before_the_model_loads(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("llava.model.loaded.LoadedModel.from_path", None)
    assert tune.main(["--out", str(tmp_path / "out"), *given]) == 1
    assert capsys.readouterr().err.count("\n") == 1
