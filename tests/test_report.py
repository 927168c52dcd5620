"""`llava.eval.report`: tables and pictures over runs."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from run_fixtures import LAYERS, RANDOM, TEXT, VISUAL, GqaMade, metadata, write_run

from llava.eval.report import main
from llava.eval.results.reporting import drawn, label_runs, make_report, make_row
from llava.eval.runner.run import Run, find_runs

WRONG = {1, 2, 7, 30}


@pytest.fixture
def gqa(tmp_path):
    return GqaMade(tmp_path)


@pytest.fixture
def folder(gqa, tmp_path):
    """Two benchmarks' folders: GQA with a dense and two pruned runs, and one run of questions nobody can judge."""
    runs = tmp_path / "runs"
    varied = [metadata(n % 7, 3 if n % 2 else None) for n in range(40)]
    gqa.run(runs / "gqa" / "pruned.jsonl", WRONG, RANDOM, traces=varied)
    gqa.run(runs / "gqa" / "dense.jsonl", {3})
    gqa.run(runs / "gqa" / "all wrong.jsonl", set(range(40)), RANDOM | {"keep": 1})
    odd = tmp_path / "odd" / "questions.jsonl"
    odd.parent.mkdir()
    odd.write_text(gqa.questions.read_text())
    write_run(runs / "odd" / "dense.jsonl", odd, gqa.answers())
    return runs


def rows_by_name(report) -> dict[tuple[str, str], dict]:
    return {(row["benchmark"], row["run"]): row for row in report["rows"]}


def test_a_report_has_a_row_a_run_and_its_pictures(folder, tmp_path, capsys):
    out = tmp_path / "report"
    assert main([str(folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    assert [row["run"] for row in report["rows"]] == ["dense", "all wrong", "pruned", "dense"]  # dense first, by name
    pictures = [f"small-{what}.png" for what in ("accuracy", "tokens", "decisions")]
    assert {path.name for path in out.iterdir()} == {"report.md", "report.csv", *pictures}
    assert report["files"] == [str(out / name) for name in ("report.md", "report.csv", *pictures)]
    for name in pictures:
        with Image.open(out / name) as picture:
            assert picture.width >= 600
            assert np.asarray(picture.convert("L")).std() > 10  # not blank
    markdown = (out / "report.md").read_text()
    assert all(f"![{name[:-4]}]({name})" in markdown for name in pictures)
    for text in (printed, markdown):
        assert all(word in text for word in ("gqa_made", "odd", "97.5", "90.0", "no scores", "KV"))
    assert "random, layer 1, keep 5" in markdown


def test_figures_are_means_of_the_traces(folder, tmp_path):
    rows = rows_by_name(make_report(find_runs([folder])[0], tmp_path / "report"))
    dense, pruned = rows["gqa_made", "dense"], rows["gqa_made", "pruned"]
    traces = [metadata(n % 7, 3 if n % 2 else None) for n in range(40)]
    assert pruned["scores"] == {"accuracy": pytest.approx(90)} and rows["odd", "dense"]["scores"] == {}
    assert pruned["kv_bytes"] == pytest.approx(np.mean([trace["kv_bytes"] for trace in traces]))
    assert pruned["flops_saved"] == pytest.approx(1 - sum(t["flops"] for t in traces) / (40 * traces[0]["dense_flops"]))
    assert pruned["kept_tokens"] == pytest.approx(np.mean([n % 7 for n in range(40)]), abs=1e-3)
    assert (pruned["prefill_ms"], dense["prefill_ms"]) == (1, 2)
    assert (dense["flops_saved"], dense["tokens_per_layer"], dense["kept_tokens"]) == (0, TEXT + VISUAL, VISUAL)


def test_the_csv_file_holds_the_same_figures(folder, tmp_path):
    report = make_report(find_runs([folder])[0], tmp_path)
    table = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
    assert len(table) == len(report["rows"]) == 4
    for line, row in zip(table, report["rows"], strict=True):
        assert line["run"] == row["run"] and line["config"] == row["config"]
        assert float(line["flops"]) == row["flops"] and float(line["kv_bytes_saved"]) == row["kv_bytes_saved"]
        assert line["score_accuracy"] == (str(row["scores"]["accuracy"]) if row["scores"] else "")


def test_markdown_tables_are_well_formed(folder, gqa, tmp_path):
    gqa.run(folder / "gqa" / "odd | name.jsonl", WRONG, RANDOM | {"method": "a|b"})
    make_report(find_runs([folder])[0], tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    tables = [line.replace(r"\|", "") for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in tables[:6]}) == 1
    assert r"odd \| name" in "\n".join(lines)


def test_what_is_drawn_of_a_run(gqa, tmp_path):
    traces = [metadata(), metadata(4, 3), metadata(0, 2), metadata(6)]
    answers = dict(list(gqa.answers({1}).items())[:4])
    run = Run.read(write_run(tmp_path / "x.jsonl", gqa.questions, answers, RANDOM, traces=traces, limit=4))
    one = label_runs([run])[0]
    shown = drawn(run, make_row(one))
    assert shown.filter_layers.tolist() == [-1, 1, 1, 1]
    assert shown.exit_layers.tolist() == [-1, 3, 2, -1]
    assert shown.kept.tolist() == [VISUAL, 4, 0, 6]
    assert shown.tokens.shape == (4, LAYERS) and shown.tokens[1].tolist() == [30, 30, 14, 10]
    assert shown.accuracy == 75 and not shown.dense
    flops = [sum(trace[key] for trace in traces) for key in ("flops_all_tokens", "dense_flops_all_tokens")]
    assert shown.flops_share == pytest.approx(100 * flops[0] / flops[1])


def test_dense_runs_alone_have_no_decisions_to_draw(gqa, tmp_path):
    report = make_report([Run.read(gqa.run(tmp_path / "dense.jsonl"))], tmp_path / "report")
    assert not any("decisions" in file for file in report["files"])
    gqa.annotations.unlink()
    report = make_report([Run.read(tmp_path / "dense.jsonl")], tmp_path / "other")
    assert [file for file in report["files"] if file.endswith(".png")] == [str(tmp_path / "other" / "small-tokens.png")]


def test_runs_are_told_apart_by_their_folders_and_models_by_their_hash(gqa, tmp_path):
    first = gqa.run(tmp_path / "one" / "x" / "a.jsonl")
    second = gqa.run(tmp_path / "two" / "x" / "a.jsonl")
    third = gqa.run(tmp_path / "two" / "x" / "b.jsonl")
    other = gqa.run(tmp_path / "c.jsonl", settings={"model": "small:4567"})
    labels = label_runs(find_runs([first, second, third, other])[0])
    assert [(one.model, one.name) for one in labels] == [
        ("small:0123", "b"),
        ("small:0123", "one/x/a"),
        ("small:0123", "two/x/a"),
        ("small:4567", "c"),
    ]
    assert [one.model for one in label_runs(find_runs([first, second])[0])] == ["small", "small"]


def test_other_question_files_of_one_name_are_other_benchmarks(gqa, tmp_path):
    other = GqaMade(tmp_path / "more", images=2)
    labels = label_runs(find_runs([gqa.run(tmp_path / "a.jsonl"), other.run(tmp_path / "b.jsonl")])[0])
    assert [one.benchmark for one in labels] == ["gqa_made", "gqa_made (2)"]


def test_unfinished_partial_and_unequal_runs_are_marked(gqa, tmp_path):
    gqa.run(tmp_path / "runs" / "whole.jsonl")
    short = dict(list(gqa.answers().items())[:8])
    write_run(tmp_path / "runs" / "limited.jsonl", gqa.questions, short, RANDOM, limit=8)
    write_run(tmp_path / "runs" / "stopped.jsonl", gqa.questions, short, RANDOM, state="interrupted")
    write_run(tmp_path / "runs" / "empty.jsonl", gqa.questions, {}, RANDOM, state="running")
    report = make_report(find_runs([tmp_path / "runs"])[0], tmp_path / "report")
    notes = {row["run"]: " | ".join(row["notes"]) for row in report["rows"]}
    assert set(notes) == {"whole", "limited", "stopped"} and not notes["whole"]
    assert "only the first 8 of the file" in notes["limited"] and "other questions than whole" in notes["limited"]
    assert "unfinished" in notes["stopped"] and "interrupted" in notes["stopped"]
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "| limited* |" in markdown.replace(r"\*", "*") and "| whole |" in markdown


def test_a_folder_and_a_file_in_it_are_one_run(gqa, tmp_path):
    path = gqa.run(tmp_path / "runs" / "a.jsonl")
    assert len(find_runs([tmp_path / "runs", path, path.with_name("a.run.json")])[0]) == 1


def test_annotations_are_looked_for_in_the_data_folder(folder, gqa, tmp_path):
    moved = tmp_path / "data" / "gqa_made"
    moved.parent.mkdir()
    gqa.folder.rename(moved)
    runs = find_runs([folder / "gqa"])[0]
    assert all(row["scores"] == {} for row in make_report(runs, tmp_path / "a")["rows"])
    found = make_report(runs, tmp_path / "b", data_dir=moved.parent)
    assert all(row["scores"] for row in found["rows"])


def test_what_cannot_be_read_is_left_out_and_named_and_plots_take_a_format(gqa, tmp_path, capsys):
    runs = tmp_path / "runs"
    gqa.run(runs / "good.jsonl", {3}, RANDOM)
    gqa.run(runs / "broken.jsonl").write_text("{\n")
    path = gqa.run(runs / "traceless.jsonl")
    path.write_text(path.read_text().replace('"metadata"', '"meta"'))
    write_run(runs / "empty.jsonl", gqa.questions, {}, RANDOM, state="running")
    out = tmp_path / "out"
    assert main([str(runs), "--out", str(out), "--format", "svg", "--dpi", "60"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out.splitlines()[-1])
    assert [row["run"] for row in report["rows"]] == ["good"] and len(report["left_out"]) == 3
    markdown = (out / "report.md").read_text()
    for words in ("broken.jsonl is not valid JSON", "traceless.jsonl:1 has no trace", "empty.jsonl has no answer yet"):
        assert words in printed.err and words in markdown
    assert "![small-accuracy](small-accuracy.svg)" in markdown and (out / "small-decisions.svg").is_file()


@pytest.mark.parametrize(("name", "message"), [("nothing", "is not there"), ("empty", "holds no run")])
def test_nothing_to_report_is_one_line(tmp_path, capsys, name, message):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / name), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()


def test_runs_without_any_answer_are_refused(gqa, tmp_path, capsys):
    write_run(tmp_path / "empty.jsonl", gqa.questions, {}, RANDOM, state="running")
    assert main([str(tmp_path / "empty.jsonl"), "--out", str(tmp_path / "out")]) == 1
    assert "no run to report: " in capsys.readouterr().err
