"""The experiments as commands, all on the small model, with the properties of their columns."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from llava.analysis import experiment
from llava.analysis.experiment import name_of
from llava.analysis.paper_experiments import EXPERIMENTS, default_windows, layers_text
from llava.model.loaded import LoadedModel
from llava.model.pruning import PruningConfig
from llava.model.pruning.flops import DecoderShape
from llava.tiny.accuracy import CHECKPOINT
from llava.tiny.benchmarks import write_benchmarks

QUESTIONS, LAYERS = 4, 12
MEASURES = "score accuracy questions agreement agreement_low agreement_high flops_share visual_flops_share kv_share"
GRID = ["--grid", "layer_threshold=0.9,0.995", "--grid", "tokens_threshold=0.05,500"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_benchmarks(folder, questions=10, seed=3)
    return folder


def arguments(name, data, out, *more):
    options = ["--model-path", CHECKPOINT, "--benchmark", "gqa_mini", "--data-dir", str(data), "--out", str(out)]
    return [name, *options, "--device", "cpu", "--batch-size", "4", *more]


ALL = ["--limit", str(QUESTIONS), "--step", "6", "--layer", "4", "--keep", "7", "--windows", "0-3,4-7,8-11", *GRID]


@pytest.fixture(scope="module")
def out(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiments")
    assert experiment.main(arguments("all", data, folder, *ALL)) == 0
    return folder


def rows(out, name, **wanted):
    with (out / f"{name}.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    return [row for row in found if all(row[key] == str(value) for key, value in wanted.items())]


def no_model(*args, **kwargs):
    raise AssertionError("the model was loaded")


def texts(out, row):
    return [json.loads(line)["text"] for line in (out / row["answers"]).read_text().splitlines()]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_leaves_a_table_a_picture_and_a_run_file(out, name):
    table = rows(out, name)
    with Image.open(out / f"{name}.png") as picture:
        assert picture.width > 500
    record = json.loads((out / f"{name}.run.json").read_text())
    assert record["state"] == "finished" and record["settings"]["limit"] == QUESTIONS
    assert all(int(row["questions"]) == QUESTIONS for row in table)
    for cell in record["cells"]:
        config = None if cell["config"] is None else PruningConfig.from_dict(cell["config"])
        run = json.loads((out / cell["answers"].replace(".jsonl", ".run.json")).read_text())
        assert run["settings"]["pruning_config"] == (config and config.resolved(LAYERS).to_dict())
    if name != "exits":
        assert set(MEASURES.split()) <= set(table[0])
        assert [float(table[0][key]) for key in ("agreement", "flops_share", "kv_share")] == [100, 100, 100]
        assert len(table) == len(record["cells"]) > 3


def test_masking_a_layer_s_image_away_is_the_same_however_it_is_done(out):
    blind = rows(out, "discarding", how="discard", k=0)[0]
    everything = rows(out, "windows", window="first", k=LAYERS)[0]
    assert texts(out, everything) == texts(out, blind) != texts(out, rows(out, "windows", window="dense")[0])
    for row in rows(out, "windows", window="last"):
        same = rows(out, "discarding", how="discard", k=row["k"])
        assert not same or texts(out, row) == texts(out, same[0])
    (cross,) = rows(out, "self-attention", layers="deep", rows="cross", merged=False)
    assert cross["masked"] == "8-11"
    (none,), (no_layer,) = rows(out, "selection", rule="none kept"), rows(out, "critical", tokens="dense")
    assert float(none["visual_kept"]) == 0 and float(no_layer["visual_kept"]) == 144


def test_costs_are_those_of_the_formula(out):
    answers = (out / rows(out, "windows")[0]["answers"]).read_text().splitlines()
    prompts = [json.loads(line)["metadata"]["prompt_tokens"] for line in answers]
    shape = DecoderShape(LAYERS, 192, 512, 4, 4, 48)
    dense = LAYERS * sum(shape.layer_flops(n) for n in prompts)
    for row in rows(out, "discarding", how="discard"):
        k = int(row["k"])
        cost = sum(k * shape.layer_flops(n) + (LAYERS - k) * shape.layer_flops(n - 144) for n in prompts)
        assert float(row["flops_share"]) == pytest.approx(100 * cost / dense, abs=0.01)
        kept = sum(k * n + (LAYERS - k) * (n - 144) for n in prompts)
        assert float(row["kv_share"]) == pytest.approx(100 * kept / (LAYERS * sum(prompts)), abs=0.01)
    for row in rows(out, "decoding")[1:]:
        assert float(row["flops_share"]) == 100 > float(row["kv_share"])


def test_scores_and_agreement_are_those_of_the_answers(out, data):
    references = json.loads((data / "gqa_mini" / "data" / "testdev_balanced_questions.json").read_text())
    dense = texts(out, rows(out, "windows")[0])
    for row in rows(out, "selection") + rows(out, "grid"):
        lines = [json.loads(line) for line in (out / row["answers"]).read_text().splitlines()]
        right = sum(line["text"].lower() == references[line["question_id"]]["answer"] for line in lines)
        equal = sum(line["text"] == text for line, text in zip(lines, dense, strict=True))
        assert float(row["score"]) == 100 * right / QUESTIONS
        assert float(row["agreement"]) == 100 * equal / QUESTIONS
        assert float(row["agreement_low"]) <= float(row["agreement"]) <= float(row["agreement_high"])


def test_the_histogram_is_of_the_traces_and_the_grid_of_its_thresholds(out):
    table = rows(out, "exits")
    assert [row["layer"] for row in table] == [*map(str, range(LAYERS)), "none"]
    for column, key in (("filtered", "filter_layer"), ("exited", "exit_layer")):
        (cell,) = (c for c in json.loads((out / "exits.run.json").read_text())["cells"] if c["config"])
        lines = [json.loads(line)["metadata"] for line in (out / cell["answers"]).read_text().splitlines()]
        layers = [str(line[key] if line[key] is not None else "none") for line in lines]
        assert [int(row[column]) for row in table] == [layers.count(row["layer"]) for row in table]
    points = [
        (float(row["layer_threshold"]), float(row["tokens_threshold"])) for row in rows(out, "grid", cell="pruned")
    ]
    assert points == [(0.9, 0.05), (0.9, 500), (0.995, 0.05), (0.995, 500)]
    kept = [float(row["visual_kept"]) for row in rows(out, "grid", cell="pruned")]
    assert kept[3] == 0 < kept[2]


def test_the_report_is_a_map_by_depth_and_a_section_an_experiment(out):
    report = (out / "report.md").read_text()
    assert all(f"## {one.title}" in report and f"({name}.png)" in report for name, one in EXPERIMENTS.items())
    table = rows(out, "map")
    assert [int(row["layer"]) for row in table] == list(range(LAYERS))
    assert 0 < float(table[0]["depth"]) < float(table[-1]["depth"]) < 1
    dense = float(rows(out, "windows")[0]["score"])
    for row in rows(out, "windows", window="first"):
        masked = float(table[int(row["k"]) - 1]["first layers masked"])
        assert masked == pytest.approx(100 * float(row["score"]) / dense, abs=0.01)
    assert table[1]["discarded"] == "" and table[6]["discarded"] != ""  # the sweep's step is 6
    assert (out / "map.png").stat().st_size > 10_000


def test_a_second_run_asks_nothing_and_says_the_same(out, data, monkeypatch):
    before = {path.name: path.read_text() for path in out.glob("*.csv")}

    monkeypatch.setattr(LoadedModel, "from_path", no_model)
    assert experiment.main(arguments("all", data, out, *ALL)) == 0
    assert {path.name: path.read_text() for path in out.glob("*.csv")} == before


def test_a_plot_has_the_format_that_was_asked_for(out, data, monkeypatch):
    monkeypatch.setattr(LoadedModel, "from_path", no_model)
    assert experiment.main(arguments("exits", data, out, "--format", "svg", *ALL)) == 0
    assert (out / "exits.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("name", ["windows", "discarding", "selection", "critical"])
def test_plots_draw_the_intervals_of_the_csv(out, name):
    table = [{key: number(value) for key, value in row.items()} for row in rows(out, name)]
    score, agreement = EXPERIMENTS[name].draw(table).axes
    ends = [segment[:, 1].tolist() for one in agreement.collections for segment in one.get_segments()]
    expected = [[row["agreement_low"], row["agreement_high"]] for row in table[1:]]
    np.testing.assert_allclose(sorted(ends), sorted(expected))
    assert not score.collections


def number(text):
    try:
        return float(text)
    except ValueError:
        return text


def test_experiments_share_the_runs_of_equal_configs():
    assert name_of(None) == "dense"
    config = {"method": "mask", "layers": [2, 1]}
    assert name_of(config) == name_of({**config, "layers": [1, 2], "text": "remove"})
    assert name_of(config) != name_of({**config, "visual": "remove"})


@pytest.mark.parametrize("layers", [2, 12, 28, 32, 48])
def test_stages_are_the_papers_scaled_and_always_layers_of_the_model(layers):
    found = default_windows(layers)
    assert all(window and window[0] >= 0 and window[-1] < layers for window in found.values())
    if layers == 32:
        assert {name: layers_text(window) for name, window in found.items()} == {
            "shallow": "0-7",
            "middle": "8-14",
            "deep": "26-31",
        }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--benchmark", "gqa_minus"], "gqa_minus"),
        (["--benchmark", "pop"], "'pop'"),
        (["--windows", "0-3,4-7,8-12"], "deep ends at layer 12, but the model has 12 layers"),
        (["--layer", "11"], "the model has 12 layers, and one must follow"),
        (["--grid", "layer_treshold=0.9"], "experiment 'grid': unknown key 'layer_treshold'"),
        (["--pruning-config", '{"method":"vtw"}'], "experiment 'grid': unknown key 'layer_threshold'"),
        (["--pruning-config", "none"], "--pruning-config none"),
        (["--model-path", "none/there"], "none/there"),
        (["--conv-mode", "v7"], "v7"),
        (["--load-8bit", "--load-4bit"], "both given"),
    ],
)
def test_mistakes_are_one_line_before_the_model_loads(data, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.setattr(LoadedModel, "from_path", no_model)
    assert experiment.main(arguments("grid", data, tmp_path / "out", *more)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("llava_gqa_testdev_balanced.jsonl", "llava_gqa_testdev_balanced.jsonl"),
        ("data/testdev_balanced_questions.json", "testdev_balanced_questions.json"),
        ("data/images", "images"),
        ("out", "out"),
    ],
)
def test_broken_inputs_are_one_line_before_the_model_loads(data, tmp_path, capsys, monkeypatch, broken, message):
    monkeypatch.setattr(LoadedModel, "from_path", no_model)
    shutil.copytree(data / "gqa_mini", tmp_path / "data" / "gqa_mini")
    path = tmp_path / "out" if broken == "out" else tmp_path / "data" / "gqa_mini" / broken
    if path.is_dir():
        image = sorted(path.iterdir())[0]
        image.write_bytes(b"no image")
        message = image.name
    else:
        path.write_text("{")
    assert experiment.main(arguments("windows", tmp_path / "data", tmp_path / "out")) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "more", [["--windows", "0-3"], ["--windows", "3-0,1-2,3-4"], ["--grid", "x"], ["--grid", "a=b"], ["--keep", "0"]]
)
def test_bad_options_are_refused_by_the_command_line(data, tmp_path, capsys, more):
    with pytest.raises(SystemExit) as left:
        experiment.main(arguments("grid", data, tmp_path, *more))
    assert left.value.code == 2 and more[0] in capsys.readouterr().err


def test_help_lists_every_experiment_with_its_place_in_the_paper(capsys):
    with pytest.raises(SystemExit):
        experiment.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text and one.source in text for name, one in EXPERIMENTS.items())
