"""The bench: it runs what it reports, in turn, and its figures equal those computed by hand from times and traces."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from llava.cli import UserError
from llava.eval import bench
from llava.eval.runner.generate import dense_trace
from llava.eval.timing import measurement, rounds
from llava.eval.timing.figures import changed_decisions, figures, warnings_of
from llava.eval.timing.force_plan import read, with_thresholds
from llava.eval.timing.memory import cpu_peak
from llava.eval.timing.options import SHAPE_NAMES, BenchOptions, ForcedPlan
from llava.eval.timing.rounds import Replayed, Run, measures, memory_for, run_once, take_turns
from llava.eval.timing.shapes import SHAPES, Shape, random_model, sharpen, text_split
from llava.eval.timing.workload import random_workload
from llava.model.pruning import PruningConfig
from llava.model.pruning.flops import DecoderShape

TINY = Path("playground/checkpoints/llava-tiny")
CPU = torch.device("cpu")
KEYS = {"prefill_ms", "decode_ms_per_token", "peak_bytes", "kv_bytes", "flops", "ceiling", "speedup", "efficiency"}
KEYS |= {"probe_share", "vision_ms", "probe_ms"}
VISIPRUNER = {"mode": ["shallow", "middle", "deep"], "layer_threshold": 0.99, "tokens_threshold": 0.1}
PLAN = {"method": "replay", "filter_layer": 2, "keep": 5, "exit_layer": 4}


def workload_of(layers=6, dtype=torch.float32, **more):
    options = BenchOptions(shape="tiny", num_layers=layers, prompt_tokens=20, **{"batch_size": 2} | more)
    return random_workload(SHAPES["tiny"], options, CPU, dtype)


@pytest.fixture(scope="module")
def workload():
    return workload_of()


def run_main(capfd, *arguments) -> tuple[int, str, str]:
    status = bench.main([str(argument) for argument in arguments])
    return status, *capfd.readouterr()


@pytest.fixture(scope="module")
def small_run():
    """One small bench: a method that measures, fired, and a plan."""
    configs = [json.dumps(VISIPRUNER), f"plan={json.dumps(PLAN)}"]
    sizes = {"num_layers": 6, "batch_size": 2, "new_tokens": 3, "prompt_tokens": 20, "rounds": 2}
    plan = ForcedPlan(2, 5, 4)
    return measurement.bench(
        BenchOptions(shape="tiny", device="cpu", dtype="float32", pruning_config=configs, force_plan=plan, **sizes)
    )


def test_result_has_the_keys_of_dense_and_of_every_config(small_run):
    assert list(small_run["configs"]) == ["visipruner", "plan"]
    for row in (small_run["dense"], *small_run["configs"].values()):
        assert row.keys() >= KEYS
        low, high = row["prefill_ms_range"]
        assert 0 < low <= row["prefill_ms"] <= high and row["decode_ms_per_token"] > 0 and row["peak_bytes"] > 0
        assert row["vision_ms"] is None  # no tower exists
    assert json.loads(json.dumps(small_run)) == small_run


def test_ceiling_flops_and_kv_are_those_of_the_plan_by_hand(small_run):
    """164 tokens of which 144 are visual in layers 0 to 2, then 25 in layer 3, then 20; two prompts, fp32."""
    hidden, mlp = 192, 512

    def layer(n):
        return 4 * n * hidden**2 + 2 * n * n * hidden + 3 * n * hidden * mlp

    lengths = [164, 164, 164, 25, 20, 20]
    plan, dense = small_run["configs"]["plan"], small_run["dense"]
    assert plan["tokens_per_layer"] == lengths
    assert plan["flops"] == 2 * sum(map(layer, lengths)) and dense["flops"] == 2 * 6 * layer(164)
    assert plan["ceiling"] == pytest.approx(6 * layer(164) / sum(map(layer, lengths)), abs=1e-4)
    assert plan["kv_bytes"] == 2 * sum(lengths) * 2 * hidden * 4 and dense["kv_bytes"] == 2 * 6 * 164 * 2 * hidden * 4
    assert plan["efficiency"] == pytest.approx(plan["speedup"] / plan["ceiling"], abs=1e-3)


def test_fired_run_says_what_was_timed(small_run):
    plans = small_run["configs"]["visipruner"]["plans"]
    assert {(plan["filter_layer"], plan["exit_layer"]) for plan in plans} == {(2, 4)}
    assert sum(plan["prompts"] for plan in plans) == 2
    chosen = small_run["settings"]["force_plan"]["visipruner"]
    assert chosen == small_run["configs"]["visipruner"]["config"] and chosen["exit_patience"] == 1
    assert small_run["configs"]["visipruner"]["probe_share_range"] is not None
    assert small_run["configs"]["plan"]["probe_share"] == 0.0
    assert small_run["configs"]["visipruner"]["kv_bytes"] < small_run["configs"]["plan"]["kv_bytes"]  # shallow layers


def test_configs_take_turns():
    """A clock that runs backwards: the second round is twice as fast for everybody, speed-up does not see it."""
    asked = []

    def run(name, config):
        asked.append((name, config))
        slow = {"dense": 8.0, "a": 4.0, "a without probing": 3.0}[name]
        return Run(slow / (1 + (len(asked) > 3)), None, 0.0, None, [])

    cells = {"dense": None, "a": "A", "a without probing": "again"}
    runs = take_turns(cells, 2, run)
    assert asked == [("dense", None), ("a", "A"), ("a without probing", "again")] * 2
    assert [run.prefill for run in runs["a"]] == [4.0, 2.0]
    trace = dense_trace(DecoderShape(2, 8, 16, 2, 2, 4), 4, 10, 5)
    found = figures(runs["dense"], runs["a"], [trace], runs["a without probing"])
    assert found["speedup_range"] == [2.0, 2.0] and found["probe_share_range"] == [0.25, 0.25]
    assert found["probe_ms"] == 0.75 and found["ceiling"] == 1.0 and found["efficiency"] == 2.0
    assert found["decode_ms_per_token"] is None and found["peak_bytes"] is None


def test_dense_is_the_untouched_model(workload, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("dense opened a pruning session")

    monkeypatch.setattr("llava.eval.timing.workload.prune", refuse)
    implementations = []
    layer = workload.decoder.layers[0].self_attn

    def look(*_):
        implementations.append(layer.config._attn_implementation)

    hook = layer.register_forward_pre_hook(look)
    run = run_once(workload, None, 3)
    hook.remove()
    assert implementations == ["sdpa"] * 3 and "forward" not in vars(workload.decoder)
    assert run.traces == [] and run.prefill > 0 and run.decode > 0


def test_pruned_runs_are_undone_and_leave_a_trace_a_prompt(workload):
    run = run_once(workload, PruningConfig.of(PLAN), 1)
    assert [trace.tokens_per_layer for trace in run.traces] == [[164, 164, 164, 25, 20, 20]] * 2
    assert run.decode is None and "forward" not in vars(workload.decoder)


@pytest.mark.parametrize(
    ("layer", "keep", "exit_layer"), [(1, 1, 3), (2, 10, 5), (3, 143, 5), (4, 20, None), (2, 144, 4)]
)
def test_fire_fires_where_asked(layer, keep, exit_layer):
    workload = workload_of(batch_size=1, seed=layer)
    sharpen(workload.decoder.layers, layer)
    config = PruningConfig.of(VISIPRUNER)
    (trace,) = read(workload, with_thresholds("c", config, ForcedPlan(layer, keep, exit_layer), workload))
    assert trace.filter_layer == layer and len(trace.kept) == keep
    if exit_layer is not None:
        assert trace.exit_layer == exit_layer


def test_fire_serves_a_batch_half_precision_and_the_released_preset():
    workload = workload_of(batch_size=5, dtype=torch.bfloat16)
    sharpen(workload.decoder.layers, 3)
    config = PruningConfig.of({**VISIPRUNER, "preset": "released", "tokens_scale": "relative"})
    traces = read(workload, with_thresholds("c", config, ForcedPlan(3, 12, 5), workload))
    assert {(trace.filter_layer, trace.exit_layer) for trace in traces} == {(3, 5)}
    counts = sorted(len(trace.kept) for trace in traces)
    assert counts[0] <= 12 <= counts[-1]


def test_fire_says_when_no_threshold_would_do():
    workload = workload_of()
    sharpen(workload.decoder.layers, 1)  # layer 1 is peaked, so that no later one can come first
    with pytest.raises(UserError, match=r"no layer_threshold .* smallest cosine is \S+ in layer 4 and \S+ in layer 1"):
        with_thresholds("c", PruningConfig.of(VISIPRUNER), ForcedPlan(4, 5), workload)


@pytest.mark.parametrize(
    "config",
    [
        {**VISIPRUNER, "layer_threshold": 1.0, "tokens_threshold": 0.02},
        {"method": "pyramiddrop"},
        {"method": "sparsevlm", "layers": [1, 2, 4]},
        {"method": "random", "layer": 2, "keep": 7, "before": {"method": "divprune", "keep": 30}},
    ],
)
def test_replay_keeps_the_same_tokens_prompt_by_prompt(workload, config):
    real = read(workload, PruningConfig.of(config))
    again = read(workload, Replayed.of_traces(real))
    assert any(trace.cuts for trace in real)
    for name in ("tokens_per_layer", "kv_tokens_per_layer", "cuts", "rules"):
        assert [getattr(trace, name) for trace in again] == [getattr(trace, name) for trace in real]
    assert not any(trace.probes for trace in again)


def test_what_measures_nothing_is_not_paired():
    assert measures(PruningConfig.of(VISIPRUNER))
    assert measures(PruningConfig.of({"method": "vtw", "k": 3, "before": {"method": "divprune", "keep": 9}}))
    for settings in (PLAN, {"method": "none"}, {"method": "vtw", "k": 3}, {"method": "random", "keep": 3}):
        assert not measures(PruningConfig.of(settings))


def test_peak_counts_what_is_held_at_once(capfd):
    def work():
        a = torch.ones(1000, dtype=torch.float32)
        b = a + 1
        del a
        c = b + 1
        del b
        return c.sum()

    assert 8000 <= cpu_peak(work).whole < 8200 and cpu_peak(work).prefill is None
    assert capfd.readouterr() == ("", "")


def test_peak_on_cuda_is_counted_anew_in_every_run(monkeypatch):
    """Stand-ins for the counters of a device with 100 bytes of weights; an earlier peak of 900 must not show."""
    counters = {"now": 100, "most": 900}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: counters["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: counters["most"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: counters.update(most=counters["now"]))
    with rounds.CudaPeak(torch.device("cuda")) as memory:
        counters["most"] = 350
    assert memory.bytes == 250
    with rounds.CudaPeak(CPU) as memory:
        pass
    assert memory.bytes is None


def test_peak_of_a_pruned_run_is_below_dense(small_run):
    rows = small_run["configs"]
    assert rows["plan"]["peak_bytes"] < small_run["dense"]["peak_bytes"]
    assert small_run["dense"]["peak_bytes"] > small_run["dense"]["kv_bytes"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llava-1.5-7b", 6_738_415_616),
        ("llava-1.5-13b", 13_015_864_320),
        ("qwen2-vl-7b", 7_615_616_512),
        ("qwen3-vl-8b", 8_190_735_360),
    ],
)
def test_shapes_have_the_published_decoders_parameters(name, parameters):
    shape = SHAPES[name]
    model = random_model(shape, shape.decoder.layers, torch.device("meta"), torch.bfloat16, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_the_command_line_offers_every_shape():
    assert tuple(SHAPES) == SHAPE_NAMES


def test_tiny_shape_is_the_shipped_models():
    shape = SHAPES["tiny"]
    config = json.loads((TINY / "config.json").read_text())
    tower = json.loads((TINY / "vision_tower" / "config.json").read_text())
    decoder = shape.decoder
    assert config["hidden_size"] == decoder.hidden and config["num_hidden_layers"] == decoder.layers
    assert config["intermediate_size"] == decoder.mlp and config["vocab_size"] == shape.vocabulary
    assert config["num_attention_heads"] == decoder.heads and config["num_key_value_heads"] == decoder.kv_heads
    assert {key: tower[key] for key in shape.clip} == dict(shape.clip)
    assert shape.visual_tokens == (tower["image_size"] // tower["patch_size"]) ** 2


def test_random_model_is_seeded_and_keeps_its_angles_in_fp32():
    one, two, other = (random_model(SHAPES["tiny"], 1, CPU, torch.bfloat16, seed) for seed in (0, 0, 1))
    weight = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one.state_dict()[weight], two.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])
    assert one.state_dict()[weight].float().std() == pytest.approx(0.02, rel=0.05)
    angles = one.model.rotary_emb.inv_freq
    assert angles.dtype == torch.float32
    assert torch.allclose(angles, 10000.0 ** -(torch.arange(0, 48, 2) / 48))
    assert torch.get_default_dtype() == torch.float32


def test_text_stands_around_the_images_as_in_vicuna():
    assert [text_split(tokens) for tokens in (2, 20, 64, 100)] == [(1, 1), (10, 10), (32, 32), (35, 65)]
    mask = workload_of(batch_size=1).visual_mask[0]
    assert mask.nonzero().flatten().tolist() == list(range(10, 154)) and len(mask) == 164


def test_vision_runs_and_methods_that_read_it_do(capfd):
    arguments = ["--shape", "tiny", "--num-layers", 2, "--vision", "--rounds", 1, "--new-tokens", 2, "--images", 2]
    arguments += ["--device", "cpu"]
    config = json.dumps({"method": "visionzip", "dominant": 20, "contextual": 4})
    status, out, _ = run_main(capfd, *arguments, "--pruning-config", config)
    result = json.loads(out.splitlines()[-1])
    assert status == 0 and result["dense"]["vision_ms"] > 0 and result["settings"]["vision"] == "run"
    assert result["settings"]["visual_tokens"] == 288
    assert result["configs"]["visionzip"]["tokens_per_layer"] == [64 + 2 * 24] * 2


def test_loaded_model_is_asked_in_its_own_format(capfd):
    arguments = ["--model-path", TINY, "--batch-size", 2, "--rounds", 1, "--new-tokens", 2, "--prompt-tokens", 60]
    arguments += ["--device", "cpu", "--image-file", "docs/scene.png", "--pruning-config", TINY / "pruning.json"]
    status, out, err = run_main(capfd, *arguments)
    result = json.loads(out.splitlines()[-1])
    assert status == 0 and list(result["configs"]) == ["pruning"] and "profiler" not in err
    assert 60 <= result["settings"]["text_tokens"] < 66 and result["settings"]["weights"] == "loaded"
    assert result["dense"]["vision_ms"] > 0
    assert result["configs"]["pruning"]["plans"][0]["filter_layer"] is not None
    assert "efficiency" in out and "what was pruned" in out


def test_slower_than_dense_is_said():
    dense = {"peak_bytes": 100, "prefill_peak_bytes": 80}
    found = {"speedup": 0.9, "speedup_range": [0.8, 0.95], "decode_speedup": 0.5, "decode_speedup_range": [0.4, 0.6]}
    lines = warnings_of("c", found | {"peak_bytes": 110, "prefill_peak_bytes": 84}, dense)
    assert lines[0] == "c: prefill is SLOWER than dense, 0.90× its speed (0.80–0.95 over the rounds)"
    assert (
        "decoding is SLOWER" in lines[1] and "10.0%" in lines[2] and "prefill is HIGHER than dense by 5.0%" in lines[3]
    )
    unknown = {"peak_bytes": None, "prefill_peak_bytes": None}
    assert warnings_of("c", {"speedup": 1.1, "decode_speedup": None} | unknown, unknown) == []


def test_out_of_memory_names_config_and_batch(capfd, monkeypatch):
    def full(workload, config, new_tokens):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines")

    monkeypatch.setattr(measurement, "run_once", full)
    status, out, err = run_main(capfd, "--shape", "tiny", "--num-layers", 1, "--batch-size", 3, "--device", "cpu")
    last = err.splitlines()[-1]
    assert status == 1 and not out and "config 'dense' with batch size 3" in last and "--batch-size" in last

    with pytest.raises(RuntimeError, match="another failure"), memory_for("x"):
        raise RuntimeError("another failure")


REPLAY = json.dumps(PLAN)
WRONG = {
    "--num-layers is for --shape": ["--model-path", str(TINY), "--num-layers", "3"],
    "--vision is for --shape": ["--model-path", str(TINY), "--vision"],
    "--image-file is for --model-path": ["--shape", "tiny", "--image-file", "docs/scene.png"],
    "nowhere.png": ["--model-path", str(TINY), "--image-file", "nowhere.png"],
    "is not a CLIP": ["--shape", "qwen2-vl-7b", "--vision"],
    "config 'replay': the plan reaches layer 3": ["--shape", "tiny", "--num-layers", "2", "--pruning-config", REPLAY],
    "the name 'replay' is taken": ["--shape", "tiny", "--pruning-config", REPLAY, "--pruning-config", REPLAY],
    "the name 'dense' is taken": ["--shape", "tiny", "--pruning-config", f"dense={REPLAY}"],
    "unknown pruning method": ["--shape", "tiny", "--pruning-config", '{"method":"reply"}'],
    "--force-plan needs a --pruning-config": ["--shape", "tiny", "--force-plan", "2:5", "--pruning-config", REPLAY],
    "measures from layer 2 on": ["--shape", "tiny", "--force-plan", "1:5", "--pruning-config", json.dumps(VISIPRUNER)],
    "the decoder has 12 layers": [
        "--shape",
        "tiny",
        "--force-plan",
        "11:5",
        "--pruning-config",
        json.dumps(VISIPRUNER),
    ],
    "a prompt has 144 visual": ["--shape", "tiny", "--force-plan", "5:145", "--pruning-config", json.dumps(VISIPRUNER)],
    "no exit without 'deep'": [
        *("--shape", "tiny", "--force-plan", "5:10:8"),
        *("--pruning-config", json.dumps({**VISIPRUNER, "mode": ["middle"]})),
    ],
    "give --vision": [
        *("--shape", "tiny", "--pruning-config"),
        json.dumps({"method": "visionzip", "dominant": 20, "contextual": 4}),
    ],
    "--prompt-tokens must be at least 2": ["--shape", "tiny", "--prompt-tokens", "1"],
    "prompt format alone has": ["--model-path", str(TINY), "--prompt-tokens", "5"],
    "the model takes 512": ["--model-path", str(TINY), "--images", "4"],
    "--cuda-graphs needs a CUDA device, this run is on cpu": ["--shape", "tiny", "--cuda-graphs"],
    "give either --model-path": [],
    "dtype 'float8' is not supported": ["--shape", "tiny", "--dtype", "float8"],
    "nowhere/at/all": ["--model-path", "nowhere/at/all"],
}
NEEDS_A_TOKENIZER = ("prompt format alone has", "the model takes 512")


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_is_one_line(capfd, monkeypatch, message):
    def refuse(*given):
        raise AssertionError("a model was made")

    if message not in NEEDS_A_TOKENIZER:
        monkeypatch.setattr(measurement, "loaded_workload", refuse)
        monkeypatch.setattr(measurement, "random_workload", refuse)
    status, out, err = run_main(capfd, *WRONG[message], "--device", "cpu")
    assert status == 1 and not out
    assert re.fullmatch(r"error: [^\n]*\n", err) and message in err


@pytest.mark.parametrize("fire", ["5", "5:0", "5:3:6", "a:b", "1:2:3:4"])
def test_command_line_teaches_fire(capfd, fire):
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--shape", "tiny", "--force-plan", fire])
    assert stopped.value.code == 2 and "LAYER:KEEP[:EXIT]" in capfd.readouterr().err


def test_names_of_configs(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(REPLAY)
    configs = measurement.named(["none", REPLAY, f"a b={REPLAY}", str(path), f"other={path}"])
    assert list(configs) == ["replay", "a b", "mine", "other"]
    assert len(set(configs.values())) == 1


def test_changed_decisions_are_reported(workload):
    first = run_once(workload, PruningConfig.of(PLAN), 1)
    other = run_once(workload, PruningConfig.of({**PLAN, "keep": 6}), 1)
    assert changed_decisions("c", first.traces, [first, first]) == []
    assert "1 of 2 runs" in changed_decisions("c", first.traces, [first, other])[0]


def test_garbage_is_collected_before_and_not_during(workload, monkeypatch):
    states = []
    monkeypatch.setattr(rounds.gc, "collect", lambda: states.append("collected"))
    observed = dataclasses.replace(
        workload, batches=[lambda n: states.append(rounds.gc.isenabled()), *workload.batches]
    )
    assert run_once(observed, None, 1).prefill > 0
    assert states == ["collected", False] and rounds.gc.isenabled()


def test_a_video_is_timed_dense_and_pruned_at_equal_tokens(monkeypatch):
    """Eight frames are four pairs of 64 tokens; every config's traces and FLOPs are those of its share."""
    small = Shape(DecoderShape(4, 64, 64, 4, 2, 16), 300, 64, text="qwen2", video=True)
    monkeypatch.setattr(measurement, "SHAPES", SHAPES | {"qwen2.5-vl-7b": small})
    configs = [json.dumps({"method": name, "share": 0.5}) for name in ("divprune", "frames", "evs")]
    sizes = {"num_layers": 2, "new_tokens": 2, "prompt_tokens": 20, "rounds": 1, "frames": 8}
    options = BenchOptions(shape="qwen2.5-vl-7b", device="cpu", dtype="float32", pruning_config=configs, **sizes)
    result = measurement.bench(options)
    assert result["settings"]["visual_tokens"] == 256 and result["settings"]["text_tokens"] == 20
    assert result["dense"]["tokens_per_layer"] == [276] * 2
    for row in result["configs"].values():
        assert row["tokens_per_layer"] == [148] * 2 and row["kv_share"] == round(148 / 276, 4)
        assert row["ceiling"] == result["configs"]["frames"]["ceiling"] > 1 and row["prefill_ms"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": "tiny"}, "--shape tiny shows no video; qwen2.5-vl-3b, qwen2.5-vl-7b do"),
        ({"shape": "qwen2.5-vl-7b", "vision": True}, "--vision does not go with it"),
        ({"model_path": str(TINY)}, "--model-path does not go with it"),
    ],
)
def test_frames_are_for_shapes_that_show_videos(changes, message):
    with pytest.raises(UserError, match=message):
        BenchOptions(frames=8, **changes).check()
