"""Calibration: predictions equal the engine's plans, the search finds the optimum, held-out images are disjoint."""

import json
import math
import shutil
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import MIXED, Prompts, random_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from llava.eval import calibrate
from llava.eval.runner.questions import read_questions
from llava.eval.tuning import candidates as space
from llava.eval.tuning.candidates import Candidate, Shallow, Space
from llava.eval.tuning.recording import RECORDER, Recording, scales_of, transfer
from llava.eval.tuning.samples import exact_interval, max_disagreements, split
from llava.eval.tuning.search import PARTS, cheapest, with_shallow
from llava.eval.tuning.trials import read_trials
from llava.model.pruning import PruningConfig, prune
from llava.model.pruning.flops import DecoderShape
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import write_benchmarks

KINDS = tuple(kind for kind in MIXED if "v" in kind)


def recording_of(llama, prompts):
    with prune(llama, RECORDER, prompts.visual) as session:
        llama(**prompts.inputs)
    return Recording.of(session.policies, [len(kind) for kind in prompts.kinds])


@pytest.fixture(scope="module")
def llama():
    return random_llama(8, seed=1)


@pytest.fixture(scope="module")
def recording(llama):
    return recording_of(llama, Prompts(*KINDS))


@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_what_is_predicted_without_running_is_what_runs_do(llama, recording, monkeypatch, scale):
    """Of candidates whose shallow layers run dense: filter layer, kept tokens and so FLOPs are exact."""
    monkeypatch.setattr(space, "LAYER_THRESHOLDS", (0.8, 0.9, 0.97))
    monkeypatch.setattr(space, "EXITS", ((0.6, 1), (0.8, 1), (0.8, 2), None))
    shape = DecoderShape.of(llama.config)
    found = Space(recording, shape, scale).all([Shallow(1, None), Shallow(3, None)])
    chosen = [
        one for one in found if one.exit is None or one.tokens_threshold == found[len(found) // 2].tokens_threshold
    ]
    assert len(chosen) > 10
    prompts, exact = Prompts(*KINDS), 0
    for candidate in chosen[:40]:
        with prune(llama, candidate.settings(scale), prompts.visual) as session:
            llama(**prompts.inputs)
        cost = sum(trace.flops("all") for trace in session.traces) / sum(t.dense_flops("all") for t in session.traces)
        # after the filter the last token changes, and with it later cosines: exits are predictions
        if candidate.exit is None:
            assert cost == pytest.approx(candidate.flops, rel=1e-6)
            exact += 1
    assert exact > 3
    assert [one.flops for one in found] == sorted(one.flops for one in found)


def test_masked_shallow_layers_are_counted_as_traces_count_them(llama, recording):
    shape, prompts = DecoderShape.of(llama.config), Prompts(*KINDS)
    plan = np.array([[one.shape[1]] * 8 for one in recording.cosine])
    for visual in ("remove", "dense"):
        shallow = Shallow(3, visual)
        text = recording.tokens - plan[:, 0]
        config = {"mode": ["shallow"], "shallow_mid_layer": 3, "shallow_visual": visual}
        with prune(llama, config, prompts.visual) as session:
            llama(**prompts.inputs)
        assert space.flops_of(plan, text, shape, shallow) == pytest.approx(sum(t.flops("all") for t in session.traces))


def test_relative_thresholds_do_not_see_a_models_scale(llama):
    """Values three times as long, output projections a third: the same function, other ‖c‖, the same ‖c‖ / ‖O‖."""
    scaled = random_llama(8, seed=1)
    for layer in scaled.model.layers:
        layer.self_attn.v_proj.weight.data *= 3
        layer.self_attn.o_proj.weight.data /= 3
    prompts = Prompts(*KINDS)

    def kept(model, **threshold):
        config = {"mode": ["middle"], "shallow_mid_layer": 2, "layer_threshold": 0.97, **threshold}
        with prune(model, config, prompts.visual) as session:
            model(**prompts.inputs)
        return [trace.kept for trace in session.traces]

    for threshold in (0.05, 0.1, 0.2, 0.3):
        relative = {"tokens_threshold": threshold, "tokens_scale": "relative"}
        assert kept(llama, **relative) == kept(scaled, **relative)
    assert any(map(len, kept(llama, tokens_threshold=0.05, tokens_scale="relative")))
    assert kept(llama, tokens_threshold=1.0) != kept(scaled, tokens_threshold=1.0)
    own, other = recording_of(llama, prompts), recording_of(scaled, prompts)
    settings = {"shallow_mid_layer": 2, "layer_threshold": 0.97, "tokens_threshold": 1.0}
    record = {"model": "small", "scale": scales_of(own, settings)}
    found = transfer(other, settings | {"tokens_threshold": 3.0}, record)
    assert found["better"] == "relative" and found["from"] == "small"
    assert found["relative_kept"] == pytest.approx(found["own_kept"], abs=0.5) != found["absolute_kept"]


class Additive:
    """A space of 12 layers and 144 tokens in which every part of a setting costs something of its own."""

    scale = "absolute"
    shape = SimpleNamespace(layers=12)

    def share(self, part):
        return 144 * part

    def keeping(self, shallow, layer_threshold, count):
        return 1 / count if count < 144 else 0.0

    def candidate(self, shallow, layer_threshold, tokens_threshold, exit=None):
        flops = 0.1 + 0.04 * shallow.layers - 0.01 * (shallow.visual is not None)
        flops += 0.02 * (len(space.LAYER_THRESHOLDS) - space.LAYER_THRESHOLDS.index(layer_threshold))
        flops += 0.001 / max(tokens_threshold, 1 / 144) + 0.003 * space.EXITS.index(exit)
        return Candidate(shallow, layer_threshold, tokens_threshold, exit, flops)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 11), min_size=9, max_size=9).map(sorted),
    st.integers(1, 100),
    st.integers(0, len(space.EXITS) - 1),
    st.integers(0, 11),
)
def test_the_search_finds_the_cheapest_where_each_part_of_a_setting_passes_by_itself(earliest, least, exit, bears):
    """earliest: the first layer that may filter, by layer threshold; least: tokens needed; bears: masked layers."""
    thresholds, asked = space.LAYER_THRESHOLDS, []

    def allowed(one):
        early = one.shallow.layers >= earliest[thresholds.index(one.layer_threshold)]
        return early and one.tokens_threshold <= 1 / least and space.EXITS.index(one.exit) >= exit

    def attempt(settings):
        masked = settings["shallow_mid_layer"] if "shallow" in settings["mode"] else 0
        asked.append(settings)
        leave = (settings["exit_threshold"], settings["exit_patience"]) if "deep" in settings["mode"] else None
        shallow = Shallow(settings["shallow_mid_layer"], "remove" if masked else None)
        one = Additive().candidate(shallow, settings["layer_threshold"], settings["tokens_threshold"], leave)
        return {"passed": allowed(one) and masked <= bears, "flops": one.flops}

    best = cheapest(Additive(), attempt, trials=200)
    fewest = min(count for count in (*space.KEPT, *(Additive().share(part) for part in PARTS)) if count >= least)
    passing = [
        Additive().candidate(shallow, threshold, 1 / fewest, space.EXITS[exit]).flops
        for start, threshold in product(range(11), thresholds)
        for shallow in [Shallow(start, "remove" if 0 < start <= bears else None)]
        if start >= earliest[thresholds.index(threshold)]
    ]
    assert (best is None) == (not passing)
    # steps are compared before their shallow layers are masked, which saves 0.01 here
    assert best is None or min(passing) - 1e-9 <= best[0].flops <= min(passing) + (0.01 if bears < 11 else 0) + 1e-9
    assert len(asked) <= (110 if least > 36 else 80)
    assert cheapest(Additive(), lambda settings: {"passed": False, "flops": 1.0}, trials=3) is None


def test_shallow_layers_are_masked_at_the_end_where_the_answers_bear_it():
    best = Candidate(Shallow(4, None), 0.99, 0.1, None, 0.5)
    assert with_shallow(best, 0.5, "absolute", lambda settings: {"passed": False}) == best.settings("absolute")
    costlier = with_shallow(best, 0.5, "absolute", lambda settings: {"passed": True, "flops": 0.51})
    assert costlier == best.settings("absolute")
    found = with_shallow(best, 0.5, "relative", lambda one: {"passed": "shallow_visual" in one, "flops": 0.5})
    assert found == {
        "mode": ["shallow", "middle"],
        "shallow_mid_layer": 4,
        "layer_threshold": 0.99,
        "tokens_threshold": 0.1,
        "shallow_visual": "dense",
        "tokens_scale": "relative",
    }
    PruningConfig.from_dict(found)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_where_the_binomials_tails_are_a_fortieth(counts):
    equal, asked = counts
    low, high = exact_interval(equal, asked)
    assert 0 <= low <= equal / asked <= high <= 1
    assert low == 0 if equal == 0 else math.isclose(binom.sf(equal - 1, asked, low), 0.025, rel_tol=1e-6)
    assert high == 1 if equal == asked else math.isclose(binom.cdf(equal, asked, high), 0.025, rel_tol=1e-6)


@given(st.integers(1, 3000), st.floats(0.5, 0.999))
def test_a_setting_that_just_misses_passes_in_one_of_six_cases_at_most(samples, agreement):
    allowed = max_disagreements(samples, agreement)
    assert allowed == 0 or binom.cdf(allowed, samples, 1 - agreement) < 1 / 6
    assert binom.cdf(allowed + 1, samples, 1 - agreement) >= 1 / 6
    assert max_disagreements(samples, 1.0) == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_benchmarks(folder, questions=60, seed=5, per_image=3)
    return folder / "gqa_mini"


def test_the_parts_of_a_calibration_share_no_image(data):
    questions = read_questions(data / "llava_gqa_testdev_balanced.jsonl", data / "data/images")
    parts = split(questions, 9, 5, 6, seed=1)
    images = [{questions[place].image for place in part} for part in parts]
    assert [len(part) for part in parts] == [9, 5, 6] and len(set.union(*images)) == sum(map(len, images))
    assert len(images[0]) == 9  # one question an image, while there are images
    assert split(questions, 9, 5, 6, seed=1) == parts != split(questions, 9, 5, 6, seed=2)
    few, more, rest = split(questions, 3, 1000, 1000, seed=1)  # the others get what there is, half each
    assert len(few) == 3 and len(more) + len(rest) == 57 and abs(len(more) - len(rest)) <= 3
    assert split(questions, 12, 0, 6, seed=1)[1] == []
    assert [len(part) for part in split(questions, 57, 1000, 1, seed=1)] == [57, 0, 1]
    with pytest.raises(ValueError, match="--samples 60 leaves nothing"):
        split(questions, 60, 0, 6, seed=1)
    with pytest.raises(ValueError, match="--samples 59: only 57 questions"):
        split(questions, 59, 0, 1, seed=1)


def arguments(data, out, *more):
    options = ["--questions", data / "llava_gqa_testdev_balanced.jsonl", "--images", data / "data/images", "--out", out]
    options += ["--samples", 4, "--confirm", 4, "--held-out", 8, "--agreement", 0.5, "--trials", 4, "--batch-size", 4]
    return [*map(str, ["--model-path", CHECKPOINT, "--device", "cpu", *options]), *more]


@pytest.fixture(scope="module")
def out(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    calibrate.main(arguments(data, folder))
    return folder


def test_a_calibration_leaves_a_config_and_a_claim_that_its_own_files_bear_out(out):
    record = json.loads((out / "calibration.json").read_text())
    config = PruningConfig.from_json(out / "pruning.json")
    assert config.to_dict() == record["settings"]

    def answers(part, name):
        return [json.loads(line) for line in (out / part / f"{name}.jsonl").read_text().splitlines()]

    dense, pruned = answers("heldout", "dense"), answers("heldout", "calibrated")
    equal = sum(a["text"] == b["text"] for a, b in zip(dense, pruned, strict=True))
    claim = record["claim"]
    assert (claim["questions"], claim["equal"]) == (8, equal)
    assert claim["interval"] == list(exact_interval(equal, 8))
    costs = [sum(line["metadata"][key] for line in pruned) for key in ("flops_all_tokens", "dense_flops_all_tokens")]
    assert claim["flops"] == pytest.approx(costs[0] / costs[1]) and claim["flops"] < 1
    run = json.loads((out / "heldout" / "calibrated.run.json").read_text())
    assert run["settings"]["pruning_config"] == config.resolved(12).to_dict()
    trials = read_trials(out / "trials.jsonl")
    asked = {line["question_id"] for part in ("samples", "confirm") for line in answers(part, "dense")}
    assert (record["samples"], record["asked"], len(asked)) == (4, 8, 8)
    assert not asked & {line["question_id"] for line in dense}
    assert len(np.load(out / "influence.npz")["tokens"]) == 4
    passed = [row for row in trials if row["passed"]]
    assert record["allowed"] == 2
    assert all(row["asked"] == 8 and row["equal"] >= 8 - record["allowed"] for row in passed)
    assert all(row["equal"] < row["asked"] - record["allowed"] for row in trials if not row["passed"])
    middle = [row["flops"] for row in passed if "middle" in row["config"]["mode"]]
    assert next(row["flops"] for row in trials if row["config"] == record["settings"]) <= min(middle) * 1.001
    assert record["trials"] == len(trials) == len({json.dumps(row["config"]) for row in trials})
    report = (out / "report.md").read_text()
    assert f"{equal} of 8 held-out answers equal dense" in report and report.count("| visipruner") == len(trials)
    assert (out / "tradeoff.png").stat().st_size > 10_000
    assert record["beside"] == {} and "## Beside" not in report


def test_other_configs_are_set_beside_it_on_the_same_questions(out, data, tmp_path, capsys):
    out = shutil.copytree(out, tmp_path / "copy")
    given = arguments(data, out)
    others = {"nothing": {"method": "none"}, "blind": {"method": "vtw", "k": 0}}
    calibrate.main([*given, *(word for name in others for word in ("--config", f"{name}={json.dumps(others[name])}"))])
    record = json.loads((out / "calibration.json").read_text())
    nothing, blind = record["beside"]["nothing"], record["beside"]["blind"]
    assert (nothing["agreement"], nothing["flops"], nothing["questions"]) == (1, 1, record["claim"]["questions"])
    assert blind["agreement"] < 1 and blind["visual_flops"] == 0
    rows = [line for line in (out / "report.md").read_text().splitlines() if line.startswith(("| nothing", "| blind"))]
    assert rows[0].startswith("| nothing | 100.00% |") and len(rows) == 2
    for name in ("calibrated", "nothing"):
        names = ["--config", f"{name}=" + '{"method": "none"}'] * 2
        assert calibrate.main([*given, *names]) == 1
        assert f"--config: the name {name!r} is taken" in capsys.readouterr().err


def test_an_interrupted_calibration_comes_to_the_same_result(out, data, tmp_path):
    record = json.loads((out / "calibration.json").read_text())
    again = tmp_path / "again"
    again.mkdir()
    for name in ("settings.json", "influence.npz"):
        (again / name).write_bytes((out / name).read_bytes())
    lines = (out / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (again / "trials.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:20])
    calibrate.main(arguments(data, again))
    resumed = json.loads((again / "calibration.json").read_text())
    assert [resumed[key] for key in ("config", "claim", "trials")] == [
        record[key] for key in ("config", "claim", "trials")
    ]
    assert (again / "trials.jsonl").read_bytes().splitlines()[:2] == [line.rstrip() for line in lines[:2]]


def test_a_folder_of_other_settings_is_refused_and_a_missed_target_is_said(out, data, tmp_path, capsys):
    assert calibrate.main([*arguments(data, out), "--seed", "9"]) == 1
    assert "was made with other settings (seed: 0, now 9)" in capsys.readouterr().err
    compared = ["--compare", str(out / "calibration.json")]
    status = calibrate.main(
        [*arguments(data, tmp_path / "strict"), "--agreement", "1.0", "--scale", "relative", *compared]
    )
    record = json.loads((tmp_path / "strict" / "calibration.json").read_text())
    assert status == (0 if record["claim"]["agreement"] == 1 else 1)
    assert record["allowed"] == 0 and record["config"]["tokens_scale"] == "relative"
    assert record["transfer"][0]["from"] == "llava-tiny"
    assert "in the relative one" in (tmp_path / "strict" / "report.md").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "600"], "--samples 600 leaves nothing for the claim"),
        (["--questions", "none.jsonl"], "none.jsonl"),
        (["--questions", "BROKEN"], "broken.jsonl is not valid JSON at line 1"),
        (["--model-path", "none/there"], "none/there"),
        (["--compare", "none.json"], "--compare none.json is not the calibration.json of another model"),
        (["--images", "nowhere"], "--images is the folder"),
        (["--config", 'late={"method":"vtw","k":99}'], "'k' is 99, but the model has 12 layers"),
        (["--config", 'late={"method":"vtv"}'], "config 'late': unknown pruning method"),
        (["--pruning-config", '{"method":"none"}'], "--pruning-config takes only none here"),
        (["--conv-mode", "v0"], "v0"),
        (["--dtype", "int3"], "dtype 'int3' is not supported"),
        (["--out", "FILE"], "file"),
    ],
)
def test_mistakes_are_one_line_before_weights_are_read(data, tmp_path, capsys, no_weights, more, message):
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "file").write_text("")
    places = {"BROKEN": str(tmp_path / "broken.jsonl"), "FILE": str(tmp_path / "file")}
    assert calibrate.main([*arguments(data, tmp_path / "out"), *(places.get(word, word) for word in more)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("more", [["--agreement", "1.5"], ["--samples", "0"], ["--scale", "log"]])
def test_bad_options_are_refused_by_the_command_line(data, tmp_path, capsys, more):
    with pytest.raises(SystemExit) as left:
        calibrate.main([*arguments(data, tmp_path), *more])
    assert left.value.code == 2 and more[0] in capsys.readouterr().err
