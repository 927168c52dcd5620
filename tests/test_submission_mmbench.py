"""MMBench's Excel file for its server."""

import sys

import openpyxl
import pytest
from answer_fixtures import write_answers

from llava.eval import convert_mmbench_for_submission as submission


@pytest.fixture
def folder(tmp_path):
    names = ("index", "question", "hint", *"ABCD", "answer", "category", "image", "source", "l2-category", "comment")
    header = [*names, "split"]
    rows = (("1", "Q?", "h", "x", "0", "", "", "A"), ("1000001", "R?", "", "x", "nan", "", "", "B"))
    lines = ["\t".join([*row, "ocr", "AAAA", "s", "l", "", "dev"]) for row in rows]
    (tmp_path / "t.tsv").write_text("\n".join(["\t".join(header), *lines]) + "\n")
    return tmp_path


def run(folder):
    argv = ["--annotation-file", str(folder / "t.tsv"), "--result-dir", str(folder), "--experiment", "run"]
    return submission.main([*argv, "--upload-dir", str(folder / "up")])


def test_the_sheet_has_the_table_without_images_and_the_predictions(folder):
    write_answers(folder / "run.jsonl", {1000001: "B", 1: "A."})
    assert run(folder) == 0
    sheet = openpyxl.load_workbook(folder / "up" / "run.xlsx").active
    assert list(sheet.iter_rows(values_only=True)) == [
        ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split"),
        (1, "Q?", "x", "0", None, None, "A.", "A", "dev"),
        (1000001, "R?", "x", None, None, None, "B", "B", "dev"),
    ]


def test_missing_answers_and_a_missing_library_write_nothing(folder, capsys, monkeypatch):
    write_answers(folder / "run.jsonl", {1: "A"})
    assert run(folder) == 1
    assert "1 of 2 questions answered, 1 missing" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert run(folder) == 1
    assert capsys.readouterr().err.endswith("needs openpyxl: pip install openpyxl\n")
    assert not (folder / "up").exists()
