"""Training steps of the bench: batches are what they are called, FLOPs those counted by hand, all ways take a turn."""

import json

import numpy as np
import pytest
import torch

from llava.eval import bench
from llava.eval.timing import training
from llava.eval.timing.options import BenchOptions
from llava.eval.timing.shapes import SHAPES, random_model

SCHEDULE = {"method": "schedule", "enter": 1, "keep": {"2": 9}, "exit": 3}
VISUAL, ROW = 144, 192 * 672


@pytest.fixture(scope="module")
def model():
    return random_model(SHAPES["tiny"], 4, torch.device("cpu"), torch.float32, 0).train().requires_grad_(True)


def test_equal_prompts_are_equal_and_mixed_batches_show_images_or_none(model):
    generator = np.random.default_rng(0)
    options = BenchOptions(shape="tiny", batch_size=5, lengths="equal")
    drawn = [training.draw(options, VISUAL, generator) for _ in range(8)]
    assert len({tuple(map(str, batch)) for batch in drawn}) == 1 and len(set(map(str, drawn[0]))) == 1
    options = BenchOptions(shape="tiny", batch_size=5, lengths="mix")
    drawn = [training.draw(options, VISUAL, generator) for _ in range(60)]
    shown = [{visual for visual, _ in batch} for batch in drawn]
    assert {VISUAL} in shown and {0} in shown and all(len(kinds) == 1 for kinds in shown)
    batch = training.build([(VISUAL, [(10, 4), (3, 2)]), (0, [(5, 7)]), (0, [(3000, 7)])], model, 672, seed=0)
    assert batch.lengths == (35 + VISUAL + 19, 35 + 12, training.LONGEST)
    assert batch.visual.sum(1).tolist() == [VISUAL, 0, 0]
    assert (batch.inputs["labels"] != -100).sum(1).tolist() == [6, 7, 0]
    assert batch.inputs["attention_mask"].sum(1).tolist() == list(batch.lengths)
    assert batch.padding == pytest.approx(1 - sum(batch.lengths) / (3 * training.LONGEST))


def test_flops_are_those_counted_by_hand(model):
    batch = training.build([(VISUAL, [(10, 4)]), (VISUAL, [(30, 4)])], model, 672, seed=0)
    short, long = batch.lengths
    shape = SHAPES["tiny"].decoder
    padded = training.take_step(model, batch, None)
    assert padded.flops == 2 * (4 * shape.layer_flops(long) + long * ROW)
    assert all(parameter.grad is not None for parameter in model.model.layers.parameters())
    packed = training.take_step(model, batch, training.NoPruning())
    assert packed.flops == 4 * (shape.layer_flops(short) + shape.layer_flops(long)) + 8 * ROW
    config = training.PruningConfig.from_dict(SCHEDULE)
    layers = [sum(shape.layer_flops(length - VISUAL + left) for length in batch.lengths) for left in (0, VISUAL, 9, 0)]
    assert training.take_step(model, batch, config).flops == sum(layers) + 8 * ROW
    assert min(padded.seconds, packed.seconds) > 0


def test_the_command_times_all_ways_in_turn(capsys, monkeypatch):
    order, take_step = [], training.take_step
    monkeypatch.setattr(training, "take_step", lambda *a: order.append(a[2] and a[2].method) or take_step(*a))
    words = ["--train", "--shape", "tiny", "--num-layers", "4", "--batch-size", "2", "--rounds", "2", "--device", "cpu"]
    assert bench.main([*words, "--pruning-config", "late=" + json.dumps(SCHEDULE)]) == 0
    output = capsys.readouterr().out
    result = json.loads(output.splitlines()[-1])
    assert list(result["training"]) == ["padded", "packed", "late"]
    assert order == ["schedule", "none", None, None, "none", "schedule", "schedule", "none", None]
    for row in result["training"].values():
        assert row["reached_over_packed_range"][0] > 0 and row["peak_bytes"] > 0
    late = result["training"]["late"]
    assert late["promised_over_packed"] > 1.5 and late["config"]["exit"] == 3
    assert late["peak_bytes"] < result["training"]["packed"]["peak_bytes"] < result["training"]["padded"]["peak_bytes"]
    assert "processor seconds of forward and backward" in output
    assert bench.main([*words, "--vision"]) == 1
    assert "--vision does not go with --train" in capsys.readouterr().err
