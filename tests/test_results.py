"""Results of all commands: a run read back, its costs and agreement, tables, units, plots."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from run_fixtures import RANDOM, GqaMade, metadata, write_run

from llava.cli import UserError
from llava.eval.metrics.intervals import share_interval
from llava.eval.results.comparison import compare
from llava.eval.results.formats import bytes_text, change_text, config_text, count_text
from llava.eval.results.plots import PlotOptions, draw_intervals, new_figure, pareto_front, whole_bins
from llava.eval.results.reporting import make_report
from llava.eval.results.table import Column, Table, console
from llava.eval.runner.costs import Costs
from llava.eval.runner.run import Agreement, Run, find_runs
from llava.model.pruning import PruningConfig

OLD = Path(__file__).parent / "old_runs"
"""Runs of commit 9f45e28: of model_vqa_loader, with times in the answers, and of llava.eval.run, with a times file."""


@pytest.fixture
def gqa(tmp_path):
    return GqaMade(tmp_path)


class TestRun:
    def test_runs_of_older_versions_are_compared_and_reported(self, tmp_path):
        folder = shutil.copytree(OLD, tmp_path / "moved")
        dense, pruned = Run.read(folder / "loader/dense.jsonl"), Run.read(folder / "run")
        result = compare(dense, pruned)
        assert (result["questions"], result["partial"], result["broken"], result["fixed"]) == (6, False, 5, 0)
        assert result["scores"]["accuracy"]["difference"] == pytest.approx(-250 / 3)
        assert result["scores"]["accuracy"]["interval"] == [-100, -75] and result["p"] == 0.0625
        assert result["agreement"]["equal"] == 1
        assert result["agreement"]["interval"] == pytest.approx([3.0053369748306693, 56.35028221864702])
        costs = {name: cost["ratio"] for name, cost in result["costs"].items()}
        assert costs["flops"] == pytest.approx(0.17697259373571103)
        assert costs["prefill_ms"] == pytest.approx(0.4068514825732616, abs=1e-4)
        report = make_report(find_runs([folder])[0], tmp_path / "report")
        assert {row["run"]: row["scores"]["accuracy"] for row in report["rows"]} == {
            "dense": pytest.approx(100),
            "random": pytest.approx(100 / 6),
        }
        assert not any(row["notes"] for row in report["rows"]) and not report["left_out"]

    def test_an_unfinished_run_has_the_answers_of_its_parts(self, gqa, tmp_path):
        path = gqa.run(tmp_path / "x.jsonl", {3}, RANDOM, state="interrupted")
        whole = Run.read(path)
        lines = path.read_text().splitlines(keepends=True)
        path.unlink()
        (tmp_path / "x.parts").mkdir()
        (tmp_path / "x.parts/0.jsonl").write_text("".join(lines[:7]))
        (tmp_path / "x.parts/1.jsonl").write_text("".join(lines[20:30]) + lines[30][:40])  # killed while writing
        run = Run.read(path)
        assert list(run.answers) == list(whole.answers)[:7] + list(whole.answers)[20:30]
        assert run.partial and "interrupted" in run.problem and run.costs.questions == 17
        path.write_text("".join(lines))  # killed while the parts were put together
        assert list(Run.read(path).answers) == list(whole.answers)

    def test_what_was_measured_is_in_the_answers_or_beside_them(self, gqa, tmp_path):
        path = gqa.run(tmp_path / "x.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        times = [
            {key: row[key] for key in ("question_id", "prompt")} | {"milliseconds": {"prefill": 7}} for row in rows
        ]
        (tmp_path / "x.times.jsonl").write_text("".join(json.dumps(row) + "\n" for row in times))
        assert Run.read(path).costs.mean_ms("prefill") == 2  # an answer's own times win over older ones beside it
        for row in rows:
            del row["metadata"]["milliseconds"]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert Run.read(path).costs.mean_ms("prefill") == 7

    def test_a_limit_leaves_out_what_the_file_has_more_of(self, gqa, tmp_path):
        short = dict(list(gqa.answers().items())[:8])
        limited = Run.read(write_run(tmp_path / "a.jsonl", gqa.questions, short, limit=8))
        assert limited.left_out == "only the first 8 of the file (--limit)" and limited.partial
        whole = Run.read(gqa.run(tmp_path / "b.jsonl", limit=10))  # finished before it was given again with --limit 10
        assert whole.left_out is None and not whole.partial
        assert Run.read(gqa.run(tmp_path / "c.jsonl", limit=40)).left_out is None
        skipped = Run.read(write_run(tmp_path / "d.jsonl", gqa.questions, short, limit=9, skipped=[{}]))
        assert skipped.left_out == "only the first 9 of the file (--limit), 1 skipped (--skip-bad)"

    def test_runs_below_a_folder_that_cannot_be_read_are_named(self, gqa, tmp_path):
        runs = tmp_path / "runs"
        gqa.run(runs / "a.jsonl")
        gqa.run(runs / "b.jsonl").write_text('{"question_id"')
        gqa.run(runs / "c.jsonl").with_name("c.run.json").write_text("{")
        found, broken = find_runs([runs])
        assert [run.name for run in found] == ["a"] and len(broken) == 2
        assert "c.run.json is not a run file" in broken[0] and "b.jsonl is not valid JSON at line 1" in broken[1]
        with pytest.raises(UserError, match=r"b\.jsonl is not valid JSON"):
            find_runs([runs, runs / "b.jsonl"])

    def test_agreement_counts_equal_texts_of_common_questions(self, gqa, tmp_path):
        a = Run.read(gqa.run(tmp_path / "a.jsonl", {0, 1}))
        b = Run.read(write_run(tmp_path / "b.jsonl", gqa.questions, dict(list(gqa.answers({1, 2}).items())[:10])))
        assert a.agreement(b) == Agreement.of(8, 10) and str(a.agreement(b)).startswith("80.0% (8 of 10, 95%")
        assert (a.agreement(b).low, a.agreement(b).high) == share_interval(8, 10)

    def test_shares_of_dense_are_ratios_of_sums(self):
        traces = [metadata(), metadata(5), metadata(0, 2)]
        costs = Costs.of(traces)
        for share, key in (
            ("flops_share", "flops_all_tokens"),
            ("visual_flops_share", "flops"),
            ("kv_share", "kv_bytes"),
        ):
            wanted = sum(one[key] for one in traces) / sum(one[f"dense_{key}"] for one in traces)
            assert getattr(costs, share) == pytest.approx(wanted)
        assert Costs.of([metadata()]).flops_share == 1 and Costs().flops_share == 1
        with pytest.raises(KeyError):
            costs.add({"prompt_tokens": 3})
        assert costs.questions == 3


class TestTable:
    FLOPS = Column("flops", "FLOPs of the prefill", count_text, share="share")
    ROWS = (
        {"run": "paper [1]", "flops": 505e6, "share": 0.587, "accuracy": 96.04, "config": "a, b|c"},
        {"run": "dense", "flops": 860e6, "share": 1.0, "accuracy": None, "config": "dense"},
    )

    def table(self, more=0):
        return Table(
            ["run", self.FLOPS, Column("accuracy", form=".1f"), Column("config", left=True), *[self.FLOPS] * more],
            self.ROWS,
        )

    def printed(self, table, width):
        to = console()
        to.width, to.file = width, io.StringIO()
        table.print("title [x]", ["a note"], to)
        return to.file.getvalue().splitlines()

    def test_cells_are_formatted_and_shares_shown_as_changes(self):
        assert self.table().cells() == [["paper [1]", "505M (-41%)", "96.0", "a, b|c"], ["dense", "860M", "–", "dense"]]
        table = self.table()
        table.add("third", 1e12)
        assert table.cells()[-1] == ["third", "1.00T", "–", "–"]

    @pytest.mark.parametrize("more", range(0, 12, 3))
    @pytest.mark.parametrize("width", [40, 100])
    def test_it_fits_the_width_and_loses_nothing(self, more, width):
        lines = self.printed(self.table(more), width)
        assert max(len(line.rstrip()) for line in lines) <= width
        text = "\n".join(lines)
        assert text.count("505M (-41%)") == text.count("860M") == more + 1
        assert text.count("paper [1]") == text.count("dense") - 1  # every block begins with the names
        assert lines[0] == "title [x]" and lines[-1] == "* a note" and "…" not in text

    def test_markdown_and_csv(self):
        markdown = self.table().markdown().splitlines()
        assert len({line.replace(r"\|", "").count("|") for line in markdown}) == 1
        assert markdown[1] == "| --- | ---: | ---: | --- |" and r"a, b\|c" in markdown[2]
        rows = list(csv.DictReader(io.StringIO(self.table().csv())))
        assert rows[0] == {key: str(value) for key, value in self.ROWS[0].items()} and rows[1]["accuracy"] == ""


def test_units_are_decimal():
    assert [count_text(value) for value in (3.817e12, 8.6e8, 12_345, 12)] == ["3.82T", "860M", "12.3K", "12"]
    assert [bytes_text(value) for value in (3.51e6, 512e3, 2e9, 100)] == ["3.51 MB", "512 kB", "2.00 GB", "100 B"]
    assert (change_text("505M", 0.587), change_text("860M", 1.0)) == ("505M (-41%)", "860M")


def test_a_config_in_one_line_leaves_out_what_is_default(tmp_path):
    paper = {"mode": ["shallow", "middle"], "shallow_mid_layer": 4, "layer_threshold": 0.995, "tokens_threshold": 0.2}
    line = config_text(PruningConfig.from_dict(paper).to_dict())
    assert line.startswith("visipruner paper, mode shallow+middle, shallow_mid_layer 4")
    assert "exit_patience" not in line and "kv" not in line
    changed = config_text(PruningConfig.from_dict(paper | {"kv": "all", "exit_patience": 3}).to_dict())
    assert "kv all" in changed and "exit_patience 3" in changed
    assert config_text(None) == "dense"
    assert config_text({"method": "unheard of", "keep": 3}) == "unheard of, keep 3"
    code = tmp_path / "method.py"
    code.write_text("raise SystemExit('reading a result must not run it')")
    assert config_text({"method": f"{code}:Mine", "keep": 3}) == f"{code}:Mine, keep 3"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_pareto_front_is_what_nothing_dominates(points):
    def beaten(mine, other):
        return other[0] <= mine[0] and other[1] >= mine[1] and other != mine

    front = {points[index] for index in pareto_front(points)}
    assert front == {point for point in points if not any(beaten(point, other) for other in points)}


@given(st.lists(st.integers(0, 600), min_size=1, max_size=40))
def test_bins_of_a_histogram_hold_equally_many_whole_numbers_each(values):
    edges = whole_bins(np.array(values))
    assert set(np.diff(edges)) == {np.diff(edges)[0]} and np.diff(edges)[0] % 1 == 0 and len(edges) <= 25
    assert np.histogram(values, edges)[0].sum() == len(values)


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_plots_are_written_in_the_format_that_is_asked_for(tmp_path, kind):
    figure, [[axes]] = new_figure((2, 1), 1, 1)
    draw_intervals(axes, [1, 2], [3, 4], [2, 3.5], [4, np.nan], "C0")
    path = PlotOptions(format=kind, dpi=50).save(figure, tmp_path / "llava-1.5-7b.png")
    assert path == tmp_path / f"llava-1.5-7b.{kind}"
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[kind]
    assert path.read_bytes().startswith(start)
    if kind == "png":
        assert Image.open(path).size == (100, 50)
