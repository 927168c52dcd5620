"""ScienceQA's scorer against hand-computed cases of LLaVA's reading."""

import json
from dataclasses import replace

import pytest
from answer_fixtures import last_json, write_answers

from llava.cli import UserError
from llava.eval import eval_science_qa
from llava.eval.benchmarks.scienceqa import SCIENCEQA, parse_letter, read_problems


def score(base, answers, img_only=False):
    asked = replace(SCIENCEQA, read=lambda _, folder: read_problems(folder, img_only=img_only))
    return asked.score_files(base, base, answers)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1),
        ("B. Vermont", 1),
        ("B.", None),  # the rule wants ". " after the letter
        ("b", None),
        ("C", 2),
        ("D", None),  # beyond the three options
        ("D. x", None),
        ("The answer is A.", 0),
        ("I think The answer is C, surely", 2),
        ("The answer is A", None),  # the rule wants one more character
        ("The answer is A.\nThe answer is B.", None),
        ("AB", None),
        ("", None),
    ],
)
def test_llavas_reading_of_the_letter(text, index):
    assert parse_letter(text, 3) == index


@pytest.fixture
def base(tmp_path):
    problems = {
        "7": {
            "choices": ["x", "y"],
            "answer": 0,
            "image": "image.png",
            "subject": "natural science",
            "grade": "grade2",
        },
        "8": {"choices": ["x", "y"], "answer": 1, "image": None, "subject": "natural science", "grade": "grade8"},
        "9": {"choices": ["x", "y", "z"], "answer": 2, "image": "image.png", "subject": "language science"},
        "1": {"choices": ["x", "y"], "answer": 0, "image": "image.png"},
    }
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["7", "8", "9"], "val": ["1"]}))
    return tmp_path


def test_accuracies_of_all_and_of_the_questions_with_an_image(base):
    result = score(base, write_answers(base / "a.jsonl", {"7": "A. x", "8": "B", "9": "A"}))
    assert result["accuracy"] == pytest.approx(200 / 3)
    assert result["img_accuracy"] == result.quoted == 50
    assert result["groups"]["context"] == {
        "image": {"accuracy": 50, "count": 2},
        "text only": {"accuracy": 100, "count": 1},
    }
    assert result["groups"]["grades"] == {"G1-6": {"accuracy": 100, "count": 1}, "G7-12": {"accuracy": 100, "count": 1}}
    assert result["groups"]["subject"]["natural science"]["count"] == 2


def test_image_questions_alone(base):
    answers = write_answers(base / "a.jsonl", {"7": "A", "9": "nothing"})
    result = score(base, answers, img_only=True)
    assert (result["accuracy"], result["img_accuracy"], result["unreadable"]) == (50, 50, 1)
    with pytest.raises(UserError, match="2 of 3 questions answered, 1 missing.*'8'"):
        score(base, answers)
    with pytest.raises(UserError, match="1 answers to unknown"):
        score(base, write_answers(base / "b.jsonl", {"7": "A", "9": "A", "8": "A"}), img_only=True)


def test_llavas_result_files(base, capsys):
    answers = write_answers(base / "a.jsonl", {"7": "A", "8": "A", "9": "?"})
    outputs = ["--output-file", str(base / "o.json"), "--output-result", str(base / "r.json")]
    assert eval_science_qa.main(["--base-dir", str(base), "--result-file", str(answers), *outputs]) == 0
    assert last_json(capsys.readouterr().out)["accuracy"] == pytest.approx(100 / 3)
    summary, analyses = json.loads((base / "r.json").read_text()), json.loads((base / "o.json").read_text())
    assert (summary["correct"], summary["count"]) == (1, 3)
    assert summary["results"] == {"7": 0, "8": 0, "9": -1}
    assert summary["outputs"]["9"] == "?"
    assert [row["question_id"] for row in analyses["correct"]] == ["7"]
    assert analyses["incorrect"][1] | {"question": None} == {
        "question_id": "9",
        "parsed_ans": "FAILED",
        "ground_truth": "C",
        "question": None,
        "pred": "?",
        "is_multimodal": True,
    }


@pytest.mark.parametrize(
    ("splits", "problems", "message"),
    [
        ({"val": []}, {}, "a list under 'test'"),
        ({"test": ["1"]}, {}, "problem 1 of the split 'test' is not there"),
        ({"test": ["1"]}, {"1": {"choices": ["x"], "answer": 1}}, "answer 1 of 1 options"),
        ({"test": ["1"]}, {"1": {"choices": ["x"] * 6, "answer": 1}}, "answer 1 of 6 options"),
    ],
)
def test_malformed_files_are_one_clear_error(tmp_path, splits, problems, message):
    (tmp_path / "pid_splits.json").write_text(json.dumps(splits))
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    with pytest.raises(UserError, match=message):
        score(tmp_path, write_answers(tmp_path / "a.jsonl", {"1": "A"}))
