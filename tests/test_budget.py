"""llava.eval.budget: configs that meet a share of FLOPs, of the cache, of tokens per layer, or VTW's own criterion."""

import json

import pytest

from llava.eval import budget
from llava.model.pruning import PruningConfig
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import write_benchmarks

METHODS = ("fastv", "pyramiddrop", "sparsevlm", "vtw", "visionzip", "cdpruner", "prumerge", "downsample")


def run(capsys, *words):
    status = budget.main(["--model-path", CHECKPOINT, *words])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("method", METHODS)
def test_every_method_meets_a_budget_of_flops(capsys, no_weights, method):
    status, out, _ = run(capsys, "--method", method, "--flops", "0.5")
    found = json.loads(out.splitlines()[-1])
    assert status == 0 and PruningConfig.from_dict(found["config"]).method == method
    assert 0.5 - (0.09 if method == "vtw" else 0.02) < found["visual"] <= 0.5 < found["all"]


def test_the_three_readings_of_a_number_of_tokens_differ(capsys, no_weights, tmp_path):
    """36 of 144 visual tokens: on average per layer, of FLOPs, of the cache with 60 text tokens."""
    given = '{"method": "fastv", "k": 2}'
    for word, value, key, reached in (
        ("tokens", 36, "tokens", 36),
        ("flops", 0.25, "visual", 0.25),
        ("kv", 0.5, "kv", 0.5),
    ):
        words = ("--method", given, f"--{word}", str(value), "--out", str(tmp_path / "x" / "fastv.json"))
        status, out, _ = run(capsys, *words)
        found = json.loads(out.splitlines()[-1])
        assert status == 0 and reached * 0.97 < found[key] <= reached
        config = PruningConfig.from_json(tmp_path / "x" / "fastv.json")
        assert config.to_dict() == found["config"] and config.k == 2
    assert out.count("FLOPs") == 2 and "KV" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "fastv"), "give one of --flops, --kv, --tokens and --kl, got none"),
        (("--method", "fastv", "--flops", "0.5", "--kv", "0.5"), "got flops and kv"),
        (("--method", "visipruner", "--flops", "0.5"), "decides by what it measures"),
        (("--method", "fastw", "--flops", "0.5"), "did you mean 'fastv'?"),
        (("--method", "fastv", "--flops", "0.01"), "its most aggressive setting still costs"),
        (("--method", "fastv", "--flops", "0.5", "--out", "x.txt"), "must end in .json"),
        (("--method", "fastv", "--kl", "0.1"), "--kl searches for the layer of --method vtw"),
        (("--method", '{"method": "fastv", "k": 40}', "--flops", "0.5"), "the model has 12 layers"),
    ],
)
def test_mistakes_are_one_line_before_weights_are_read(capsys, no_weights, words, message):
    status, _, err = run(capsys, *words)
    assert status == 1 and message in err and len(err.splitlines()) == 1


def test_vtw_s_layer_is_the_first_that_is_close_to_dense(capsys, tmp_path):
    write_benchmarks(tmp_path, questions=2, names=("gqa_mini",))
    folder = tmp_path / "gqa_mini"
    where = ("--questions", str(folder / "llava_gqa_testdev_balanced.jsonl"), "--images", str(folder / "data/images"))
    status, out, _ = run(capsys, "--method", "vtw", "--kl", "0.05", "--prompts", "2", *where)
    found = json.loads(out.splitlines()[-1])
    curve = {int(k): value for k, value in found["kl"].items()}
    assert status == 0 and list(curve) == list(range(5, 12))
    assert found["config"] == {"method": "vtw", "k": next(k for k, value in curve.items() if value <= 0.05)}
