"""`llava.eval.throughput`: loader and plain loop ask the same questions and give the same answers."""

import json
import shutil

import pytest
from family_checkpoints import write_family
from loader_fixtures import write_model

from llava.eval import throughput
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import write_benchmarks


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    write_benchmarks(folder, questions=10, seed=2)
    return folder


@pytest.mark.parametrize("family", [None, "qwen2_vl", "llava_next"])
def test_the_loop_is_the_loaders_equal_in_everything_but_time(data, tmp_path, capsys, family):
    model = write_family(tmp_path / "model", family) if family else write_model(tmp_path / "llava-random")
    words = ["--model-path", str(model), "--benchmark", "textvqa_mini", "--data-dir", str(data), "--device", "cpu"]
    assert throughput.main([*words, "--limit", "7", "--batch-size", "3", "--rounds", "2", "--max_new_tokens", "4"]) == 0
    output = capsys.readouterr().out
    found = json.loads(output.rstrip("\n").split("\n")[-1])
    assert (found["questions"], found["same_answers"]) == (7, 7)
    assert [len(times) for times in found["seconds"].values()] == [2, 2]
    low, high = found["speedup_range"]
    assert low <= found["speedup"] <= high
    assert sum(found["time_shares"].values()) == pytest.approx(1, abs=0.01)
    assert "plain generate loop" in output and "same answers: 7 of 7" in output


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data-dir", "nowhere"], "TextVQA mini cannot run"),
        (["--benchmark", "textvqa_min"], "did you mean textvqa_mini"),
        (["--model-path", "nowhere/at/all"], "nowhere/at/all"),
        (["--dtype", "int3"], "dtype 'int3' is not supported"),
        (["--pruning-config", "x.json"], "--pruning-config takes only none here"),
    ],
)
def test_mistakes_are_one_line_before_weights_are_read(data, capsys, no_weights, more, message):
    words = ["--model-path", CHECKPOINT, "--benchmark", "textvqa_mini", "--data-dir", str(data)]
    assert throughput.main([*words, *more]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("file", ["TextVQA_0.5.1_val.json", "llava_textvqa_val_v051_ocr.jsonl"])
def test_broken_files_are_found_before_weights_are_read(data, tmp_path, capsys, no_weights, file):
    copy = shutil.copytree(data, tmp_path / "data")
    (copy / "textvqa_mini" / file).write_text("{")
    assert throughput.main(["--model-path", CHECKPOINT, "--benchmark", "textvqa_mini", "--data-dir", str(copy)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and file in error and error.count("\n") == 1
