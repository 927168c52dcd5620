"""Comparison of methods: every method meets its budget, choices use tuning questions only, and a run resumes."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava.eval import compare_methods
from llava.eval.results.comparison import compare
from llava.eval.runner.costs import Costs
from llava.eval.runner.run import Run
from llava.eval.tuning import choosing
from llava.eval.tuning.benchmark_set import Answered
from llava.eval.tuning.candidates import Candidate, Shallow, Space
from llava.eval.tuning.choosing import schedules
from llava.eval.tuning.fitted import fitted
from llava.eval.tuning.matching import Absent, DryRun, settle
from llava.eval.tuning.recording import Recording
from llava.eval.tuning.rows import mean_interval, verdict
from llava.eval.tuning.thresholds import around, by_tokens, near, plans, spread
from llava.model.pruning import PruningConfig
from llava.model.pruning.flops import DecoderShape
from llava.model.pruning.methods import METHODS as CLASSES
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import write_benchmarks

SHAPE = DecoderShape(8, 64, 160, 4, 4, 16)
TEXT, VISUAL = 20, 48
SET_OTHERWISE = ("visipruner", "plan", "divprune-visipruner", "fitprune")
SCHEDULED = [name for name in compare_methods.METHODS if name not in SET_OTHERWISE]


def at(schedule, x):
    return schedule.with_budget(x, SHAPE.layers, VISUAL)


@pytest.fixture(scope="module")
def dry():
    return DryRun(SHAPE, [(TEXT + VISUAL, VISUAL)])


def test_every_method_that_prunes_takes_part():
    played = {one.method for name in SCHEDULED for one in schedules(name, SHAPE.layers)}
    played |= {"visipruner", "replay", "fitprune", "none"}  # set otherwise, or a control
    instruments = {"mask", "disturb", "schedule"}  # which drop nothing, or what a training says
    shipped = {name for name, cls in CLASSES.items() if cls.__module__.startswith("llava.")}
    assert played == shipped - instruments - {name for name in shipped if CLASSES[name].reads_frames}  # of video


def test_a_dry_run_counts_as_the_formula_does(dry):
    """FastV after two of eight layers: 24 of 48 visual tokens stay."""
    whole, pruned = SHAPE.layer_flops(TEXT + VISUAL), SHAPE.layer_flops(TEXT + 24)
    config = PruningConfig.from_dict({"method": "fastv", "k": 2, "r": 0.5})
    assert dry.share(config) == pytest.approx((2 * whole + 6 * pruned) / (8 * whole))
    visual = DryRun(SHAPE, [(TEXT + VISUAL, VISUAL)], "visual")
    expected = (2 * SHAPE.layer_flops(VISUAL) + 6 * SHAPE.layer_flops(24)) / (8 * SHAPE.layer_flops(VISUAL))
    assert visual.share(config) == pytest.approx(expected)


def test_few_prompts_stand_for_all_lengths():
    dry = DryRun(SHAPE, [(30 + n, 16) for n in range(100)])
    assert len(dry.sizes) == 8 and dry.sizes[0][0] < 40 and dry.sizes[-1][0] > 119
    assert dry.visual_tokens == 16


@pytest.mark.parametrize("method", SCHEDULED)
def test_a_budget_of_more_tokens_never_saves_more(method, dry):
    for schedule in schedules(method, SHAPE.layers)[:3]:
        costs = [dry.share(at(schedule, x / 6)) for x in range(7)]
        assert costs == sorted(costs) and costs[0] < costs[-1] <= 1


@pytest.mark.parametrize("method", SCHEDULED)
def test_a_method_meets_its_budget_as_closely_as_its_steps_allow(method, dry):
    found = dry.settle(schedules(method, SHAPE.layers), 0.6, 3)
    assert 1 <= len(found) <= 3
    step = 0.125 if method == "vtw" else 0.03  # a layer, or a few tokens
    assert any(0.6 - step < one.share <= 0.6 for one in found)
    assert all(one.share <= 0.6 for one in found)


def test_bisection_finds_the_most_expensive_config_within_the_budget(dry):
    schedule = schedules("random", SHAPE.layers)[2]
    found = settle(lambda x: at(schedule, x), 0.7, dry.share)
    tokens = round(found.config.share * VISUAL)
    more = PruningConfig.from_dict({"method": "random", "layer": 2, "share": (tokens + 1) / VISUAL})
    assert dry.share(found.config) == found.share <= 0.7 < dry.share(more)


def test_what_cannot_be_reached_is_absent_with_its_floor(dry):
    floor = dry.share(PruningConfig.from_dict({"method": "vtw", "k": 0}))
    with pytest.raises(Absent, match=f"{100 * floor:.1f}% of dense"):
        dry.settle(schedules("vtw", SHAPE.layers), floor - 0.01, 3)
    with pytest.raises(Absent, match="too few layers"):
        dry.settle([], 0.5, 3)
    deep = dry.settle(schedules("fastv", SHAPE.layers), 0.5, 99)
    assert 1 <= len(deep) < len(schedules("fastv", SHAPE.layers))  # after too many layers nothing reaches it


@pytest.mark.parametrize("x", [0.0, 0.1, 0.33, 0.5, 0.77, 1.0])
def test_visionzip_is_counted_by_as_many_random_tokens(x):
    config = at(schedules("visionzip", SHAPE.layers)[0], x)
    assert config.dominant + config.contextual == round(config.countable(VISUAL).share * VISUAL)


def candidate(flops, layers=2, visual="remove", threshold=0.99, tokens=0.1, exit=None):
    return Candidate(Shallow(layers, visual), threshold, tokens, exit, flops)


def test_candidates_are_taken_below_the_budget_and_unlike_each_other():
    found = [candidate(0.49), candidate(0.495, tokens=0.101), candidate(0.485, visual=None, exit=(0.99, 1))]
    others = [candidate(0.51), candidate(0.44)]
    assert near(found + others, 0.5, 0) == found
    assert near(found + others, 0.5, 2) == [others[1]]
    assert spread(found, 2) == [found[1], found[2]]  # the most expensive, and not the one that is nearly the same
    assert around(found[1], [found[2], found[0]], 1) == [found[0]]
    alike = [candidate(0.48, tokens=0.1 + n / 1000) for n in range(12)]
    assert around(found[1], [found[2], *alike], 2) == [alike[1], alike[2]]  # the two likest of thirteen
    assert near([candidate(0.549)], 0.4, 0, floor=0.25) == [candidate(0.549)]  # 0.399 of what can be saved


@pytest.fixture
def space():
    """Twenty prompts of 60 visual tokens that all filter at layer 2, with an L2 of 60 to 1 there."""
    count, layers, visual = 20, SHAPE.layers, 60
    cosine = np.full((layers, visual), 0.99)
    cosine[2:, ::7] = 0.5
    l2 = np.tile(np.arange(visual, 0, -1.0), (layers, 1))
    return Space(Recording([cosine] * count, [l2] * count, [], np.full(count, 90)), SHAPE, "absolute")


def test_thresholds_are_set_by_how_many_tokens_stay(space):
    one = space.candidate(Shallow(1), 0.9, 0.5, (0.99, 1))
    config = by_tokens(space, one)
    thresholds = [config(x).tokens_threshold for x in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert thresholds == [59.0, 58.0, 53.0, 39.0, 0.0]  # 1, 2, 7, 21 and 60 tokens are above
    assert config(0.5) == PruningConfig.from_dict(replace(one, tokens_threshold=53.0).settings("absolute"))


def test_visipruners_best_settings_are_set_to_the_budget_too(space, monkeypatch, tmp_path):
    """The best trial exceeds the budget as it is; with fewer tokens it is within, and wins."""

    class Asked:
        shape = SHAPE
        count = "all"

        def ask_once(self, config):
            exit = (config.exit_threshold, config.exit_patience)
            share = space.candidate(Shallow(1), config.layer_threshold, config.tokens_threshold, exit).flops
            return Answered({"b": 90.0 if config.exit_patience == 1 else 50.0}, share, "cpu")

    good = space.candidate(Shallow(1), 0.9, 30.5, (0.999, 1))
    poor = space.candidate(Shallow(1), 0.9, 57.5, (0.999, 2))
    budget = (good.flops + poor.flops) / 2
    monkeypatch.setattr(choosing, "near", lambda *arguments: [good, poor])
    chooser = choosing.Chooser(Asked(), tmp_path, 4)
    chooser._space, chooser._candidates = space, []
    entry = chooser.choose("visipruner", budget)
    found = PruningConfig.from_dict(entry["config"])
    assert good.flops > budget + choosing.SLACK >= entry["share"] > poor.flops
    assert found.exit_patience == 1 and 30.5 < found.tokens_threshold < 60 and len(entry["tried"]) == 4


def test_plan_is_the_median_schedule_with_the_rules_of_the_config(dry):
    config = PruningConfig.from_dict(
        {"mode": ["shallow", "middle", "deep"], "shallow_mid_layer": 2, "layer_threshold": 0.9, "tokens_threshold": 1}
    )
    costs = Costs()
    costs.filter_layers.update([2, 3, 3, None])
    costs.exit_layers.update([6, 6, 7, None])
    first, *earlier = plans(config, costs, SHAPE, VISUAL)
    plan = at(first, 0.25)
    assert plan.cuts == ((3, 12), (6, 0)) and len(earlier) == 3
    assert plan.attention(0).text == "merge" and plan.attention(1).text == "remove" and plan.attention(2).dense
    assert plan.cached(1).visual == "none" and dry.share(plan) < 1
    assert plans(config, Costs(), SHAPE, VISUAL) == []


def test_interval_of_the_mean_adds_squares():
    low, high = mean_interval([(-2.0, [-5.0, 1.0]), (0.0, [-4.0, 4.0])])
    assert low == pytest.approx(-1 - 2.5) and high == pytest.approx(-1 + 2.5)
    assert mean_interval([(0.0, None), (1.0, [0.0, 2.0])]) is None


def row(method, mean, **difference):
    return {"method": method, "saved": 50.0, "mean": mean, "flops": 0.5, "difference": difference}


def test_verdict_names_the_winner_whoever_it_is():
    rows = [row("visipruner", 90.0, a=-0.4, b=-1.2), row("random", 91.0, a=0.0, b=0.0)]
    line = verdict(rows, 50.0, 1.0)
    assert "random is first with 91.0" in line and "number 2 of 2" in line and "NOT within 1 point" in line
    assert "b -1.2" in line
    assert " within 2 points" in verdict(rows, 50.0, 2.0) and "NOT" not in verdict(rows, 50.0, 2.0)
    assert "visipruner is absent" in verdict(rows[1:], 50.0, 1.0)
    assert verdict(rows[:1], 50.0, 1.0).startswith("−50%: visipruner is number 1 of 1 with 90.0")
    assert verdict(rows, 60.0, 1.0) == "−60%: no method reaches it"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_benchmarks(folder / "eval", questions=10, seed=7)
    write_benchmarks(folder / "tune", questions=6, split="tune")
    return folder


PLAYED = ("visipruner", "plan", "fastv", "fitprune", "vtw", "visionzip", "random-before", "downsample")


def arguments(data, out, *more):
    where = ["--data-dir", str(data / "eval"), "--tune-dir", str(data / "tune"), "--out", str(out)]
    what = ["--benchmark", "gqa_mini", "--tune-limit", "8", "--trials", "2", "--device", "cpu", "--dtype", "float32"]
    return ["--model-path", CHECKPOINT, *where, *what, "--saving", "60", "99", "--methods", *PLAYED, *more]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert compare_methods.main(arguments(data, out, "--config", 'half={"method":"random","layer":3,"keep":20}')) == 0
    return out


def test_methods_stand_at_one_cost_beside_dense(run):
    summary = json.loads((run / "summary.json").read_text())
    rows = {row["name"]: row for row in summary["rows"]}
    reached = {name: row for name, row in rows.items() if row["saved"] == 60}
    assert {row["method"] for row in reached.values()} | summary["absent"]["60"].keys() == set(PLAYED)
    assert {"fastv-60", "visionzip-60", "random-before-60", "vtw-60", "fitprune-60"} <= reached.keys()
    assert json.loads((run / "configs.json").read_text())["chosen"]["60"]["visipruner"]["share"] <= 0.41
    for name, row in reached.items():
        # VisiPruner decides by what it measures: ten questions cost what they cost, set on six others
        assert row["flops"] <= 0.4 + (0.06 if name == "visipruner-60" else 0.01)
        assert row["flops"] > 0.4 - (0.1 if name in ("vtw-60", "downsample-60") else 0.03)
    assert rows["dense"]["flops"] == rows["none"]["flops"] == 1 > rows["half"]["flops"] > rows["blind"]["flops"]
    assert rows["none"]["agreement"]["gqa_mini"] == 100
    assert rows["none"]["interval"] == rows["dense"]["interval"]
    assert all(row["questions"] == 10 for row in rows.values())
    assert set(summary["absent"]["99"]) == set(PLAYED)  # the text alone costs more
    assert summary["verdicts"][1] == "−99%: no method reaches it"


def test_methods_are_scored_on_what_the_control_fails(run, data):
    """The share of questions, and each config's accuracy on them, counted again from the answers."""
    failed = json.loads((run / "summary.json").read_text())["failed"]["60"]
    asked = json.loads((data / "eval/gqa_mini/data/testdev_balanced_questions.json").read_text())
    answers = run / "answers" / "gqa_mini"

    def right(name):
        rows = map(json.loads, (answers / f"{name}.jsonl").read_text().splitlines())
        return {row["question_id"]: row["text"].lower() == asked[row["question_id"]]["answer"].lower() for row in rows}

    wrong = [question for question, ok in right("downsample-60").items() if not ok]
    assert wrong and failed["percent"] == {"gqa_mini": 100 * len(wrong) / 10}
    assert (
        set(failed["accuracy"]) >= {"dense", "none", "blind", "fastv-60"} and "downsample-60" not in failed["accuracy"]
    )
    for name in ("dense", "fastv-60", "blind"):
        expected = 100 * sum(right(name)[question] for question in wrong) / len(wrong)
        assert failed["accuracy"][name]["gqa_mini"] == pytest.approx(expected)
    words = [str(answers / f"{name}.jsonl") for name in ("dense", "fastv-60")]
    result = compare(*map(Run.read, words), failed_by=Run.read(answers / "downsample-60.jsonl"), resamples=10)
    assert result["failed"] == {"by": "downsample-60", "asked": 10, "count": len(wrong), "percent": 10.0 * len(wrong)}
    assert result["questions"] == result["scored"] == len(wrong)
    assert result["scores"]["accuracy"]["b"] == pytest.approx(failed["accuracy"]["fastv-60"]["gqa_mini"])


def test_configs_are_written_with_what_was_tried(run):
    chosen = json.loads((run / "configs.json").read_text())["chosen"]["60"]
    tried = chosen["fastv"]["tried"]
    best = max(tried, key=lambda one: one["accuracy"]["gqa_mini"])
    assert len(tried) == 2 and best["accuracy"]["gqa_mini"] == max(one["accuracy"]["gqa_mini"] for one in tried)
    assert chosen["fastv"]["config"] in [one["config"] for one in tried]
    assert chosen["vtw"]["tried"] == []  # nothing to choose
    config = PruningConfig.from_json(run / "configs" / "fastv-60.json")
    assert config.to_dict() == chosen["fastv"]["config"]
    asked = json.loads((run / "answers" / "gqa_mini" / "fastv-60.run.json").read_text())
    assert asked["settings"]["pruning_config"] == config.to_dict()


def test_table_and_picture_are_there(run):
    with open(run / "table.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert {"accuracy_gqa_mini", "flops", "kv", "mean_interval_low"} <= lines[0].keys()
    assert [line["name"] for line in lines][:2] == ["dense", "none"]
    with Image.open(run / "accuracy.png") as picture:
        assert picture.width > 800


def test_the_same_command_loads_no_model_again(run, data, capsys, no_weights):
    before = (run / "summary.json").read_text()
    assert compare_methods.main(arguments(data, run, "--config", 'half={"method":"random","layer":3,"keep":20}')) == 0
    assert (run / "summary.json").read_text() == before
    out = capsys.readouterr().out
    assert all(word in out for word in ("visionzip", "−60% of prefill FLOPs, all tokens", "absent", "random-before"))
    assert json.loads(out.splitlines()[-1])["targets"] == [60, 99]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--trials", "3"], "chosen for another model or otherwise"),
        (["--config", 'fastv={"method":"none"}'], "a name is taken"),
        (["--config", 'late={"method":"vtw","k":99}'], "config 'late': 'k' is 99"),
        (["--methods", "fastvv"], "--methods fastvv is not known (did you mean fastv?)"),
        (["--methods", "nowhere.py:Mine"], "nowhere.py"),
        (["--benchmark", "gqa_min"], "gqa_min"),
        (["--benchmark", "mmvet"], "MM-Vet has no references"),
        (["--model-path", "DATA/nowhere"], "nowhere"),
        (["--data-dir", "DATA/nowhere"], "llava.tiny.benchmarks"),
        (["--pruning-config", '{"method":"none"}'], "--pruning-config takes only none here"),
        (["--out", "DATA/file"], "file"),
        (["--tune-dir", "DATA/eval"], "--tune-dir is --data-dir"),
        (["--tune-dir", "DATA/nowhere"], "llava.tiny.benchmarks"),
    ],
)
def test_wrong_input_is_one_line_before_weights_are_read(run, data, capsys, no_weights, changes, message):
    (data / "file").write_text("")
    words = [word.replace("DATA", str(data)) for word in changes]
    assert compare_methods.main([*arguments(data, run), *words]) == 1
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


BROKEN = {
    "llava_gqa_testdev_balanced.jsonl": "llava_gqa_testdev_balanced.jsonl",
    "data/testdev_balanced_questions.json": "testdev_balanced_questions.json",
    "data/images": "images",
}


@pytest.mark.parametrize("which", ["eval", "tune"])
@pytest.mark.parametrize("file", BROKEN)
def test_broken_files_are_found_before_weights_are_read(data, tmp_path, capsys, no_weights, which, file):
    copy = shutil.copytree(data, tmp_path / "data")
    broken = copy / which / "gqa_mini" / file
    if broken.is_dir():
        next(iter(sorted(broken.iterdir()))).unlink()
    else:
        broken.write_text("{")
    assert compare_methods.main(arguments(copy, tmp_path / "out")) == 1
    err = capsys.readouterr().err
    assert BROKEN[file] in err and len(err.splitlines()) == 1


OWN_METHOD = """
from dataclasses import dataclass, replace
from llava.model.pruning import Layer, Method, Share

@dataclass(frozen=True)
class FirstTokens(Method):
    layer: Layer = 2
    part: Share = 0.5

    def select(self, layer, prompt, measured):
        if layer != self.layer:
            return None
        return prompt.positions < prompt.positions[0] + round(self.part * prompt.visual_tokens)

    @classmethod
    def schedules(cls, num_layers):
        return [cls(layer=layer) for layer in (1, 3)]

    def with_budget(self, share, num_layers, visual_tokens):
        return replace(self, part=share)
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("def schedules", "def other"), "FirstTokens.schedules() is empty"),
        (("def with_budget", "def other"), "no setting that trades visual tokens for FLOPs"),
        (("FirstTokens", "fastv"), "the class name fastv is taken"),
    ],
)
def test_an_own_method_that_cannot_be_set_is_refused_before_weights_are_read(
    data, tmp_path, capsys, no_weights, change, message
):
    (tmp_path / "own.py").write_text(OWN_METHOD.replace(*change))
    name = "fastv" if "fastv" in change else "FirstTokens"
    words = ["--methods", f"{tmp_path}/own.py:{name}"]
    assert compare_methods.main([*arguments(data, tmp_path / "out"), *words]) == 1
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def test_a_method_in_a_file_of_ones_own_takes_part(data, tmp_path):
    (tmp_path / "own.py").write_text(OWN_METHOD)
    words = ["--methods", f"{tmp_path}/own.py:FirstTokens,random-before", "--saving", "50", "--limit", "4"]
    assert compare_methods.main([*arguments(data, tmp_path / "out"), *words, "--tune-limit", "2"]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]}
    assert rows["FirstTokens-50"]["config"]["method"].endswith("own.py:FirstTokens")
    assert 0.47 < rows["FirstTokens-50"]["flops"] <= 0.51
    assert "random-before-50" in rows


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_script_has_no_syntax_error():
    script = Path(__file__).parents[1] / "scripts" / "tiny" / "compare_methods.sh"
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_saving_beyond_the_visual_tokens_is_refused_by_the_fit(dry):
    with pytest.raises(Absent, match="without any visual token"):
        fitted(None, [], dry, 0.05)
