"""`llava.eval.bench_server` and what it measures with: loads, SIGKILL and restart, the wide model, its command line."""

from __future__ import annotations

import json

import pytest
from web_fixtures import serving

from llava.cli import UserError
from llava.eval.bench_server import Options, measure_cells, work, write_wide_model
from llava.eval.timing.server_load import QUESTIONS, ServerProcess, body_of, measure, scene_url, survives_kill
from llava.model.pruning import PruningConfig
from llava.tiny.accuracy import CHECKPOINT


def test_a_load_is_asked_by_as_many_clients_as_told():
    with serving() as server:
        bodies = [body_of(scene_url(n % 2), QUESTIONS[0], 3) for n in range(6)]
        found = measure(server.url, bodies, 3).to_dict()
        assert found["requests"] == 6 and found["tokens_per_s"] > found["requests_per_s"] > 0
        assert 0 < found["first_token_ms"] <= found["answer_ms"]
        assert server.metric('llava_requests_total{path="/v1/chat/completions",status="200"}') == 6
        with pytest.raises(UserError, match="the server answered 400"):
            measure(server.url, [body_of("data:,", "?", 1)], 1)


def test_a_killed_server_starts_again_with_the_same_answers():
    assert survives_kill(["--model-path", CHECKPOINT, "--device", "cpu"])


def test_a_server_that_cannot_start_says_why():
    with pytest.raises(UserError, match="did not start: error: --host 0.0.0.0"), ServerProcess(["--host", "0.0.0.0"]):
        pass


def test_no_clients_is_no_measurement_and_wrong_ones_are_said(capsys):
    assert measure_cells(Options(clients=""), [], []) == []
    with pytest.raises(UserError, match="--clients takes numbers"):
        work(Options(clients="1,x"))


def test_the_wide_model_has_the_width_of_the_real_one(tmp_path, monkeypatch):
    """Its config alone: its weights would be gigabytes."""
    monkeypatch.setattr("llava.model.language_model.llava_llama.LlavaLlamaForCausalLM", pytest.fail)
    with pytest.raises(BaseException, match="LlavaConfig"):
        write_wide_model(tmp_path, 2)
    config = json.loads((tmp_path / "llava-wide-2/config.json").read_text())
    assert (config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]) == (4096, 11008, 2)
    PruningConfig.from_json(tmp_path / "llava-wide-2/pruning.json").check_layers(2)
